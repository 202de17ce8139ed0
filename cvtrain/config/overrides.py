"""Overrides in Hydra's grammar: small liberties taken before Hydra reads a command, and values written for it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.reflection import is_text, is_text_list, may_be_null, open_keys

# Groups whose option may be none at all, and what Hydra calls that.
NULL_CHOICES = {"experiment": "~experiment", "debug": "~debug", "logger": "logger=[]"}
# Text keys of Hydra's that name a run's folder.
HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
# Text keys whose `~` is the user's home folder.
PATHS = (
    "output_root", "resume", "checkpoint", "cache_dir", "data.root", "data.file", "data.exclude", "data.path",
    "data.cache_dir", "model.weights", "auto.weights", "sweep.file", "source", "output", "sort_into", "check", "run",
    "run_dir", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
# Text keys whose values never hold a comma: `model.arch=resnet18,resnet50` is a sweep that lacks --multirun.
NAMES = ("model.arch", "model.target", "data.target", "trainer.monitor", "trainer.device", "device", "log_level")
# Texts that need no quotes, and those among them that Hydra reads as something else.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_UNQUOTED = re.compile(r"(?:[A-Za-z_/]|\.(?!\d))[A-Za-z0-9_./-]*")
_INTERPOLATED = re.compile(r"(\$\{[^{}']*\}|[A-Za-z_/][A-Za-z0-9_./-]*)+")
_RESERVED = {"null", "true", "false", "inf", "nan"}
# Hydra's sweeps and casts, which are never text.
_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|int|float|str|bool|json_str|extend_list)\(.*\)")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def normalize_override(token: str, verb: str, *, multirun: bool = False) -> str:
    """Return the token as Hydra wants it.

    `model.kwargs.depth=2` gets the `++` that adds a key to an open mapping: a user knows their class's arguments, and
    should not need to know which mapping is open. `logger=null` or `logger=none` becomes the empty choice, which Hydra
    spells by group. The value of a text setting is taken as typed: `name=2024_01_05` and `data.root=my photos (2024)`
    are quoted, and a leading `~` of a path is expanded.

    Args:
        token: one word of the command line.
        verb: name of the primary config.
        multirun: a comma separates the values of a sweep.

    Raises:
        ConfigError: a sweep over texts that could also be one path.
    """
    key, equals, value = token.partition("=")
    if equals and value in ("null", "None", "none") and key in NULL_CHOICES:
        return NULL_CHOICES[key]
    for name in open_keys(verb):
        if equals and (key.startswith(f"{name}.") or (key == name and value.startswith("{"))):
            return f"++{token}"
    name = key.lstrip("+")
    if equals and (name in HYDRA_TEXTS or is_text(name, verb) or is_text_list(name, verb)):
        return f"{key}={_as_typed(name, value, verb, multirun)}"
    return token


def _as_typed(key: str, value: str, verb: str, multirun: bool) -> str:
    """Return the value of a text setting, quoted where Hydra would read something else."""
    if value == "" or _FUNCTION.fullmatch(value) or (value == "null" and may_be_null(key, verb)):
        return value
    if multirun or (key in NAMES and "," in value):
        if "," in value and key in PATHS and Path(_expanded(value)).exists():
            raise ConfigError(
                key,
                value,
                "with --multirun a comma separates values, and there is a path of that name",
                f"for that path write {shlex.quote(override(key, value))}",
            )
        return ",".join(_as_typed_item(key, item.strip(), verb) for item in _split(value))
    return _as_typed_item(key, value, verb)


def _as_typed_item(key: str, value: str, verb: str) -> str:
    if key not in HYDRA_TEXTS and is_text_list(key, verb):
        if not (value.startswith("[") and value.endswith("]")):
            return value
        return "[" + ",".join(_quoted_if_needed(item.strip()) for item in _split(value[1:-1])) + "]"
    if key in PATHS and value.startswith("~"):
        value = _expanded(value)
    return _quoted_if_needed(value)


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # no home folder is known
        return path


def _quoted_if_needed(text: str) -> str:
    """Return the text in Hydra's grammar; texts in quotes, and interpolations that Hydra can read, stay as they are."""
    if not text or _is_quoted(text) or (_UNQUOTED.fullmatch(text) and text.lower() not in _RESERVED):
        return text
    return text if "${" in text and _INTERPOLATED.fullmatch(text) else _quoted(text)


def _is_quoted(text: str) -> bool:
    quote = text[0]
    inner = re.sub(r"\\.", "", text[1:-1])
    return len(text) > 1 and quote in "'\"" and text[-1] == quote and quote not in inner


def unquoted(text: str) -> str:
    """Return the text that a quoted value of Hydra's grammar stands for; any other as it is."""
    if not text or not _is_quoted(text):
        return text
    quote, inner = text[0], text[1:-1]
    # Backslashes count only before a quote, and at the end.
    inner = re.sub(rf"(\\+){quote}", lambda found: "\\" * (len(found[1]) // 2) + quote, inner)
    return re.sub(r"(\\+)\Z", lambda found: "\\" * (len(found[1]) // 2), inner)


def _split(text: str) -> Iterator[str]:
    """Yield the items between commas that lie in no quotes and no brackets."""
    item, quote, open_brackets = "", "", []
    for character in text:
        if quote:
            quote = "" if character == quote and not item.endswith("\\") else quote
        elif character in "'\"" and not item.strip():
            quote = character
        elif character in _CLOSING:
            open_brackets.append(_CLOSING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == "," and not open_brackets:
            yield item
            item = ""
            continue
        item += character
    yield item


def override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar, which parses back to the same value.

    Texts that would read as something else (numbers, null, anything with spaces, commas, quotes, ...) are quoted.

    Args:
        key: a config group or a dotted key.
        value: None, a bool, a number, a text, or a list or mapping of these.

    Raises:
        ValueError: a value of another kind, or a mapping's key that Hydra's grammar has no way to write.
    """
    return f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A value as Hydra's grammar writes it: `null`, `1e-05`, `[a,'b c']`, `{depth:2}`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED else _quoted(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(value_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_mapping_key(name)}:{value_text(item)}" for name, item in value.items()) + "}"
    raise ValueError(f"{value!r} is no value of a config: a text, a number, true, false, null, or a list or mapping")


def _quoted(text: str) -> str:
    # Backslashes count only before a quote, and at the end, where the closing quote comes.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)\Z", lambda match: match[1] * 2, escaped) + "'"


def _mapping_key(name: Any) -> str:
    if isinstance(name, str) and _PLAIN.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    raise ValueError(f"{name!r} cannot be a key in {{key:value}}: letters, digits, _ . / and - after a letter or _")


def duplicate_keys(words: list[str]) -> dict[str, str]:
    """The word that counts, the last one, for each key that a command gives more than once."""
    by_key: dict[str, list[str]] = {}
    for word in words:
        key, equals, _ = word.partition("=")
        if equals:
            by_key.setdefault(key.lstrip("+"), []).append(word)
    return {key: given[-1] for key, given in by_key.items() if len(given) > 1}
