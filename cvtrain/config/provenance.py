"""The origin of a setting: the command line, or a file of the composition."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from cvtrain.config.composer import COMPOSITION_ERRORS, Composer, ConfigFile, conf_dir
from cvtrain.config.errors import Problem
from cvtrain.config.serialize import flatten
from cvtrain.config.yaml_scalars import misread_problems, read_as_written

COMMAND_LINE = "on the command line"
# Groups whose files stand for the user's own words, also where they are ours.
USERS_GROUPS = ("experiment", "debug")


@dataclass
class Origins:
    """Finds where settings of one job come from. Files are read at the first question, so a good command pays nothing.

    Args:
        composer: the composer of the command.
        overrides: the job's overrides, in Hydra's grammar.
        choices: the option of each group, or null; None: not known.
    """

    composer: Composer
    overrides: list[str]
    choices: Mapping[str, Any] | None = None

    @cached_property
    def _parsed(self) -> list[Override]:
        parsed = []
        for token in self.overrides:
            with suppress(HydraException):  # a token that is no override sets nothing
                parsed.append(self.composer.parse(token))
        return parsed

    @cached_property
    def _files(self) -> list[ConfigFile]:
        try:
            return self.composer.files(self.overrides)
        except COMPOSITION_ERRORS:
            return []  # where the files do not compose, the problem names its file itself

    def describe(self, key: str) -> str:
        """`on the command line` or `in <file>`; empty if nothing but the default sets the key."""
        if self._on_command_line(key):
            return COMMAND_LINE
        file = self._file(key)
        return f"in {readable(file.path)}" if file is not None else ""

    def is_explicit(self, key: str) -> bool:
        """True if the user set the key: on the command line, in an experiment or debug file, or in a file of their own.

        The values that an option's own file in conf/ brings along are defaults. So are an experiment's in a section
        that the command line changes: `experiment=x scheduler=onecycle` need not undo what x set for its scheduler.
        """
        if self._on_command_line(key):
            return True
        section = key.partition(".")[0]
        if any(override.key_or_group.partition(".")[0] == section for override in self._parsed):
            return False
        if self.choices is not None and not self._has_users_files(self.choices):
            return False  # without reading the option files again
        return any(_holds(file, key) and _is_users(file) for file in self._files)

    def is_set_outside(self, group: str, key: str) -> bool:
        """True if anything but an option's own file in `group` sets the key."""
        if self._on_command_line(key):
            return True
        return any(_holds(file, key) and not file.config_path.startswith(f"{group}/") for file in self._files)

    def misread_scalars(self) -> Iterator[Problem]:
        """Yield what the user's own files write and YAML reads as something else."""
        for file in self._files if self.composer.has_own_files else []:
            if not file.is_shipped:
                written = read_as_written(file.path)
                flat = flatten({key: item for key, item in written.items() if key != "defaults"}, file.package)
                for problem in misread_problems(file.values, flat, self.composer.verb):
                    yield problem.with_origin(f"in {readable(file.path)}")

    def _has_users_files(self, choices: Mapping[str, Any]) -> bool:
        return self.composer.has_own_files or any(choices.get(group) for group in USERS_GROUPS)

    def _on_command_line(self, key: str) -> bool:
        for override in self._parsed:
            name = override.key_or_group
            if name == key or name.startswith(f"{key}.") or _dict_sets(override, key):
                return True
        return False

    def _file(self, key: str) -> ConfigFile | None:
        return next((file for file in reversed(self._files) if _holds(file, key)), None)


def _dict_sets(override: Override, key: str) -> bool:
    """True if an override like `optimizer={lr:1}`, or one of a mapping's items, sets the key."""
    value = override.value()
    return isinstance(value, dict) and any(
        name == key or key.startswith(f"{name}.") for name in flatten(value, override.key_or_group)
    )


def _holds(file: ConfigFile, key: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in file.values)


def _is_users(file: ConfigFile) -> bool:
    return not file.is_shipped or file.config_path.startswith(tuple(f"{group}/" for group in USERS_GROUPS))


def readable(path: Path) -> str:
    """A path as a user would name it: `conf/...` for our own files, else relative to the working folder, if below."""
    if path.is_relative_to(conf_dir()):
        return f"conf/{path.relative_to(conf_dir())}"
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
