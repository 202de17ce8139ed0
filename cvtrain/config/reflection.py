"""The settings of the dataclasses by key: type in words, rule, and the options that have it."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from cvtrain.config.schema.fields import RULE_KEY, FieldRule
from cvtrain.config.schema.root import GROUP_SCHEMAS, VERB_GROUPS, VERBS

TYPE_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "any value"}
PLURAL_WORDS = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts", Any: "any values"}


@dataclass(frozen=True)
class Setting:
    """One leaf of a config dataclass."""

    key: str
    annotation: Any
    rule: FieldRule | None
    default: Any

    def allowed(self) -> str:
        """Type and range in words, such as `a number above 0, or null`."""
        words = describe_type(self.annotation)
        bounds = self.rule.describe() if self.rule else ""
        if self.rule and self.rule.choices is not None:
            return bounds
        if bounds:
            words += (" each " if get_origin(_required(self.annotation)) is list else " ") + bounds
        return words + (", or null" if is_optional(self.annotation) else "")

    def is_open(self) -> bool:
        """True for a mapping with free keys, such as model.kwargs."""
        return get_origin(_required(self.annotation)) is dict


def is_optional(annotation: Any) -> bool:
    return get_origin(annotation) is Union and type(None) in get_args(annotation)


def _required(annotation: Any) -> Any:
    """The annotation without Optional; a union of several types stays one."""
    if not is_optional(annotation):
        return annotation
    members = tuple(member for member in get_args(annotation) if member is not type(None))
    return members[0] if len(members) == 1 else Union[members]


def describe_type(annotation: Any) -> str:
    """A type in a user's words: `a list of numbers`, `one of fp32, bf16`. Says nothing about null."""
    annotation = _required(annotation)
    origin = get_origin(annotation)
    if origin is Union:
        return " or ".join(describe_type(member) for member in get_args(annotation))
    if origin is list:
        return f"a list of {PLURAL_WORDS[get_args(annotation)[0]]}"
    if origin is dict:
        return "a mapping {name: value}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(str(member.value) for member in annotation)
    return TYPE_WORDS[annotation]


def settings_of(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every leaf below a config dataclass, in the order in which they are written."""
    hints = _hints(schema)
    for item in fields(schema):
        key = f"{prefix}.{item.name}" if prefix else item.name
        annotation = _required(hints[item.name])
        if is_dataclass(annotation):
            yield from settings_of(annotation, key)  # type: ignore[arg-type]
        else:
            rule = item.metadata.get(RULE_KEY)
            # A field that is redeclared to change its default keeps the rule of the class that it refines.
            yield Setting(key, hints[item.name], rule or _inherited_rule(schema, item.name), _default(item))


def _inherited_rule(schema: type, name: str) -> FieldRule | None:
    for base in schema.__mro__[1:]:
        for item in fields(base) if is_dataclass(base) else ():
            if item.name == name and RULE_KEY in item.metadata:
                return item.metadata[RULE_KEY]
    return None


def _default(item: Any) -> Any:
    if callable(item.default_factory):
        return item.default_factory()
    return item.default


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


@functools.cache
def settings_by_key(verb: str) -> dict[str, dict[str, Setting]]:
    """Every key that any composition of the verb can have: key -> schema that has it -> setting.

    A schema is named `group/name`, or by the verb for keys outside the groups.
    """
    table: dict[str, dict[str, Setting]] = {}
    groups = VERB_GROUPS.get(verb, ())
    for item in own_settings(verb):
        table.setdefault(item.key, {})[verb] = item
    for group in groups:
        for name, schema in GROUP_SCHEMAS[group].items():
            prefix = f"{group}.{name}" if group == "logger" else group
            for item in settings_of(schema, prefix):
                table.setdefault(item.key, {})[f"{group}/{name}"] = item
    return table


def own_settings(verb: str) -> list[Setting]:
    """The settings of a verb outside the groups that it chooses options from."""
    groups = VERB_GROUPS.get(verb, ())
    return [item for item in settings_of(VERBS[verb]) if item.key.partition(".")[0] not in groups]


@functools.cache
def open_keys(verb: str) -> tuple[str, ...]:
    """Keys of mappings with free keys, such as model.kwargs."""
    return tuple(key for key, owners in settings_by_key(verb).items() if next(iter(owners.values())).is_open())


def is_text(key: str, verb: str) -> bool:
    """True for a setting whose value is text, or text or null."""
    return _type_of(key, verb) is str


def is_text_list(key: str, verb: str) -> bool:
    """True for a setting whose value is a list of texts."""
    annotation = _type_of(key, verb)
    return get_origin(annotation) is list and get_args(annotation) == (str,)


def may_be_null(key: str, verb: str) -> bool:
    """True for a setting that null turns off."""
    owners = settings_by_key(verb).get(key)
    return owners is not None and any(is_optional(item.annotation) for item in owners.values())


def _type_of(key: str, verb: str) -> Any:
    owners = settings_by_key(verb).get(key)
    return _required(next(iter(owners.values())).annotation) if owners else None


def breaks_rule(value: Any, rule: FieldRule) -> bool:
    """True if a value, or an element of a list, is out of the rule's range or not finite."""
    elements = value if isinstance(value, (list, tuple)) else [value]
    return any(_element_breaks(element, rule) for element in elements)


def _element_breaks(element: Any, rule: FieldRule) -> bool:
    if isinstance(element, float) and not math.isfinite(element):
        return True
    try:
        return not rule.allows(element)
    except TypeError:  # text where only numbers have bounds, such as num_workers=auto
        return False


def is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == MISSING
