"""`ConfigError`: what is wrong with a setting, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from cvtrain.config.redact import redact
from cvtrain.config.text import display_message, display_text


class _Unset(Enum):
    """Stands for no value, where None is one; an enum, since it is still itself after a pickle."""

    unset = "unset"


_UNSET = _Unset.unset


def format_value(value: Any) -> str:
    """A value as it is written on the command line: `null`, `true`, `[1,2]`, an enum by its value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(format_value(item) for item in value) + "]"
    return str(value)


@dataclass(frozen=True)
class Problem:
    """One wrong setting: the key, its value, the rule that it breaks, the remedy, and where it was set.

    Each may be left out; `origin` is filled in by the command line, which knows where a value came from.
    """

    key: str = ""
    value: Any = _UNSET
    rule: str = ""
    remedy: str = ""
    origin: str = ""

    def __str__(self) -> str:
        setting = display_text(self.key)
        if self.value is not _UNSET:
            # By its key, since a password may have blanks and commas in it.
            value = redact({self.key: self.value})[self.key]
            setting += f"={display_text(format_value(value))}"
        lines = [f"{setting}: {self.rule}" if setting else self.rule]
        lines += [f"  {line}" for line in self.remedy.splitlines()]
        if self.origin:
            lines.append(f"  set {self.origin}")
        return display_message("\n".join(lines))

    def with_origin(self, origin: str) -> "Problem":
        """Return the problem with the place where the value was set, unless it has one already."""
        return self if self.origin else replace(self, origin=origin)


class ConfigError(ValueError):
    """One or several settings that a user can mend. The command line prints it without a traceback and exits with 2."""

    def __init__(
        self,
        key: str = "",
        value: Any = _UNSET,
        rule: str = "",
        remedy: str = "",
        *,
        problems: Sequence[Problem] = (),
    ) -> None:
        self.problems = tuple(problems) or (Problem(key, value, rule, remedy),)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> Any:
        # A job of another process sends its error home by pickle; the default would lose the keyword argument.
        return _rebuild, (self.problems,)


def _rebuild(problems: tuple[Problem, ...]) -> ConfigError:
    return ConfigError(problems=problems)


class RunError(Exception):
    """A fault of the data or the numbers, not of code, that ends a run: printed without a traceback, exit code 1."""
