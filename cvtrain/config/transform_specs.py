"""The grammar of `augment.transforms` and `augment.batch_transforms`, read and checked before any library loads.

A list item is a transform's name, or a mapping of one name to its arguments:

    - RandomHorizontalFlip
    - RandomResizedCrop: {scale: [0.35, 1.0]}
    - RandomApply: {p: 0.3, transforms: [GaussianBlur: {kernel_size: 5}]}

Which names exist is in the tables of `transform_names.py`; which arguments, only the libraries know.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.hints import closest
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.transform_names import (
    ALBUMENTATIONS,
    BATCH_TRANSFORMS,
    EVAL_RESIZE,
    KORNIA,
    TORCHVISION,
    TransformTable,
)

TRANSFORMS_KEY = "augment.transforms"
BATCH_TRANSFORMS_KEY = "augment.batch_transforms"
PER_IMAGE_TABLES = {"torchvision": TORCHVISION, "albumentations": ALBUMENTATIONS}

_FORM = (
    "write a name, or one name with its arguments: [RandomHorizontalFlip, {RandomResizedCrop: {scale: [0.35, 1.0]}}]"
)


@dataclass(frozen=True)
class TransformSpec:
    """One item of a list: `key` is its place in the config, such as `augment.transforms[2].RandomCrop`."""

    name: str
    arguments: dict[str, Any]
    children: tuple["TransformSpec", ...]
    key: str


def walk_specs(specs: Iterable[TransformSpec]) -> Iterator[TransformSpec]:
    """The specs and all that are nested in them, depth first."""
    for spec in specs:
        yield spec
        yield from walk_specs(spec.children)


def closest_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `names` that `name` may have meant: the closest spelling, then those that contain it."""
    names = list(names)
    close = closest(name, names, count)
    # `Flip` for RandomHorizontalFlip: contained, though not alike in length.
    contained = [candidate for candidate in names if name.lower() in candidate.lower() and candidate not in close]
    return (close + contained)[:count]


def parse_transforms(items: list[Any], *, key: str, table: TransformTable) -> tuple[TransformSpec, ...]:
    """Specs of a list of the config.

    Args:
        items: plain names and single-key mappings, as YAML gives them.
        key: of the list, for errors.
        table: the names of the library.

    Raises:
        ConfigError: with one problem per wrong item.
    """
    problems: list[Problem] = []
    specs = _parse_list(items, key, table, problems)
    if problems:
        raise ConfigError(problems=tuple(problems))
    return specs


def transform_problems(augment: AugmentConfig) -> list[Problem]:
    """Return the problems of the two lists of `augment`, of form and of names."""
    problems: list[Problem] = []
    _parse_list(augment.transforms, TRANSFORMS_KEY, PER_IMAGE_TABLES[augment.library.value], problems)
    _parse_list(augment.batch_transforms, BATCH_TRANSFORMS_KEY, BATCH_TRANSFORMS, problems)
    return problems


def _parse_list(
    items: Any, key: str, table: TransformTable, problems: list[Problem], *, nested: bool = False
) -> tuple[TransformSpec, ...]:
    if not isinstance(items, (list, tuple)):
        problems.append(Problem(key, items, "is no list of transforms", _FORM))
        return ()
    specs = []
    for position, item in enumerate(items):
        parsed = _parse_item(item, f"{key}[{position}]", table, problems)
        if parsed is None:
            continue
        if parsed.name == EVAL_RESIZE and (nested or position > 0):
            rule = "may only be the first item of the list, as it makes an image of its final size"
            problems.append(Problem(parsed.key, rule=rule, remedy=f"move {EVAL_RESIZE} to {TRANSFORMS_KEY}[0]"))
            continue
        specs.append(parsed)
    return tuple(specs)


def _parse_item(item: Any, key: str, table: TransformTable, problems: list[Problem]) -> TransformSpec | None:
    name: Any = item
    arguments: Any = {}
    if isinstance(item, dict) and len(item) == 1:
        ((name, arguments),) = item.items()
        arguments = {} if arguments is None else arguments
    if not isinstance(name, str):
        problems.append(Problem(key, item, "is no transform", _FORM))
        return None
    key = f"{key}.{name}"
    if not isinstance(arguments, dict) or not all(isinstance(argument, str) for argument in arguments):
        rule = "arguments of a transform are a mapping of their names to values"
        problems.append(Problem(key, arguments, rule, _FORM))
        return None
    wrong_name = _name_problem(name, key, arguments, table)
    if wrong_name is not None:
        problems.append(wrong_name)
        return None
    if name not in table.compositions:
        return TransformSpec(name, dict(arguments), (), key)
    children = _parse_list(arguments.get("transforms"), f"{key}.transforms", table, problems, nested=True)
    own = {argument: value for argument, value in arguments.items() if argument != "transforms"}
    return TransformSpec(name, own, children, key)


def _name_problem(name: str, key: str, arguments: dict[str, Any], table: TransformTable) -> Problem | None:
    if name in table.names or name in table.compositions:
        return None
    if name == EVAL_RESIZE and table.library != KORNIA.library:
        rule = f"{EVAL_RESIZE} takes no arguments: data.resize and data.crop_fraction decide what it does"
        return Problem(key, arguments, rule, "write its name alone") if arguments else None
    if name in table.refused:
        return Problem(key, rule=f"{name} of {table.library} has no place here", remedy=table.refused[name])
    remedies = []
    close = closest_names(name, (*table.names, *table.compositions))
    if close:
        remedies.append(f"closest: {', '.join(close)}")
    remedies += [
        f"{other.library} has it: {other.setting}"
        for other in (TORCHVISION, ALBUMENTATIONS, BATCH_TRANSFORMS)
        if other.library != table.library and name in other.names
    ]
    remedy = "; ".join(remedies) or f"docs/augmentation.md lists what {table.library} offers"
    return Problem(key, rule=f"{name} is no transform of {table.library} that cvtrain offers", remedy=remedy)
