"""`ConfigError`: what is wrong with a setting, and what to do about it."""

from dataclasses import dataclass
from typing import Any

_UNSET = object()


@dataclass(frozen=True)
class Problem:
    """One wrong setting: the key, its value, the rule that it breaks and the remedy; each may be empty."""

    key: str
    value: Any
    rule: str
    remedy: str = ""


class ConfigError(ValueError):
    """A setting that a user can mend. The command line prints it without a traceback and exits with 2."""

    def __init__(
        self,
        key: str = "",
        value: Any = _UNSET,
        rule: str = "",
        remedy: str = "",
        *,
        problems: tuple[Problem, ...] = (),
    ) -> None:
        self.problems = problems or (Problem(key, None if value is _UNSET else value, rule, remedy),)
        self.shows_value = bool(problems) or value is not _UNSET
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = []
        for problem in self.problems:
            setting = f"{problem.key}={problem.value}" if self.shows_value else problem.key
            lines.append(f"{setting}: {problem.rule}" if setting else problem.rule)
            if problem.remedy:
                lines.append(f"  {problem.remedy}")
        return "\n".join(lines)
