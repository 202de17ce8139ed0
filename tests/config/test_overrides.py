"""`override` writes what Hydra's own parser reads back as the same value."""

import math
import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cvtrain.config.overrides import override

PARSER = OverridesParser.create()
TEXTS = [
    "resnet18", "", " ", "a b", " lead", "tail ", "a,b", "a=b", "f(x)", "[x]", "{a:1}", "it's", '"quoted"', "'", "''",
    "\\", "\\\\", "ends\\", "a\\'b", "\\'", "null", "None", "NULL", "true", "False", "1", "1e-3", "-2", "1_000", "nan",
    "inf", "3x", "C:\\data\\new", "~x", "+1", "a:b", "50 %", "ünïcödé", "tab\there", "line\nbreak", "$HOME", "@", "#",
    "a\\\n", "a/b/c", "-x", ".5", "*.jpg", "x!", "https://host:80/?a=b&c", "glob(*)", "choice(a,b)", "shuffle(1)",
]  # fmt: skip


def parsed(token):
    result = PARSER.parse_overrides([token])[0]
    assert not result.is_sweep_override()
    return result.key_or_group, result.value()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_as_they_were(text):
    assert parsed(override("name", text)) == ("name", text)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1e-05, "1e-05"),
        (0.1, "0.1"),
        (-3, "-3"),
        (1e16, "1e+16"),
        ([], "[]"),
        ([256, 128], "[256,128]"),
        (["csv", "two words"], "[csv,'two words']"),
        ({"depth": 2, "act": "gelu"}, "{depth:2,act:gelu}"),
    ],
)
def test_values_are_written_as_a_person_would(value, written):
    assert override("optimizer.lr", value) == f"optimizer.lr={written}"
    assert parsed(override("optimizer.lr", value)) == ("optimizer.lr", value)


def test_not_finite_numbers_come_back():
    assert parsed(override("x", math.inf))[1] == math.inf
    assert math.isnan(parsed(override("x", math.nan))[1])


def random_value(rng, depth=0):
    kind = rng.randrange(7 if depth < 2 else 5)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.randrange(-(10**6), 10**6)
    if kind == 2:
        return rng.uniform(-1, 1) * 10 ** rng.randrange(-20, 20)
    if kind < 5:
        return "".join(rng.choice("ab1 '\"\\,=()[]{}:$~+-.%_é") for _ in range(rng.randrange(6))).replace("${", "$ {")
    if kind == 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"key_{number}": random_value(rng, depth + 1) for number in range(rng.randrange(4))}


def typed(value):
    """A value with its types, since True == 1 and 1 == 1.0."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    return type(value).__name__.replace("QuotedString", "str"), value


def test_five_hundred_random_values_come_back():
    rng = random.Random(0)
    for _ in range(500):
        value = random_value(rng)
        assert typed(parsed(override("model.kwargs.x", value))[1]) == typed(value), value


@pytest.mark.parametrize("value", [{1, 2}, object(), {"a b": 1}, {1: 2}])
def test_what_cannot_be_written_is_refused(value):
    with pytest.raises(ValueError, match=r"cannot be a key|is no value"):
        override("x", value)
