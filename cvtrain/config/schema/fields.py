"""`setting(...)`: a dataclass field that carries its range, its meaning and its default in one place.

`validation.py` reads the ranges, the reference table in `docs/config.md` reads the meanings.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

RULE_KEY = "cvtrain"


@dataclass(frozen=True)
class FieldRule:
    """Rule for a value besides its type. Bounds apply to each element of a list."""

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None

    def describe(self) -> str:
        """The rule in words, such as `above 0 and at most 1`; empty when every value of the type is allowed."""
        parts = []
        if self.choices is not None:
            parts.append("one of " + ", ".join(str(choice) for choice in self.choices))
        for word, bound in (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ):
            if bound is not None:
                parts.append(f"{word} {bound}" if isinstance(bound, int) else f"{word} {bound:g}")
        return " and ".join(parts)

    def allows(self, value: Any) -> bool:
        """True if `value` (one element of it, if it is a list) keeps the rule. NaN keeps no bound."""
        if self.choices is not None and value not in self.choices:
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A config field: its default, its meaning in one line, and the range that a value must be in.

    Args:
        default: the value when nothing sets it; `omegaconf.MISSING` if the user has to.
        help: one line, with the unit, shown in the reference table and in errors.
        at_least, above, at_most, below: bounds of a number, or of each number in a list.
        choices: the only values allowed, for values that are not an enum.
    """
    rule = FieldRule(help, at_least, above, at_most, below, choices)
    metadata = {RULE_KEY: rule}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str, **bounds: Any) -> Any:
    """A field that the user has to set: `???` until then."""
    return setting(MISSING, help, **bounds)
