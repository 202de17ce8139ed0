"""Images that are left out by name: `data.exclude`."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig
from cvtrain.config.text import display_list
from cvtrain.data.sources.manifest_rows import read_rows
from cvtrain.data.sources.path_table import PathTable, canonical, printable

_KEY = "data.exclude"


class Exclusions:
    """Names of images that are left out.

    Args:
        file: that lists them, for the log.
        names: as `ImageSource.name` gives them.
    """

    def __init__(self, file: str = "", names: Iterable[str] = ()) -> None:
        self.file = file
        self.names = frozenset(map(canonical, names))
        self._met: set[str] = set()

    def kept(self, paths: PathTable) -> np.ndarray:
        """(M,) int64: the rows of `paths` that stay."""
        if not self.names:
            return np.arange(len(paths))
        is_kept = np.ones(len(paths), bool)
        for row, path in enumerate(paths):
            name = canonical(printable(path))
            if name in self.names:
                self._met.add(name)
                is_kept[row] = False
        return np.flatnonzero(is_kept)

    def drop(self, paths: PathTable) -> PathTable:
        """The rows of `paths` that stay."""
        rows = self.kept(paths)
        return paths if len(rows) == len(paths) else paths.take(rows)

    def lines(self) -> tuple[str, ...]:
        """A line on what was left out, if anything was."""
        if not self._met:
            return ()
        return (f"left out {len(self._met)} ({_KEY}): {display_list(sorted(self._met), 3)}",)

    def warnings(self) -> tuple[str, ...]:
        """A warning if there are names that no image has."""
        unknown = sorted(self.names - self._met)
        if not unknown:
            return ()
        return (f"{_KEY}={self.file} names {len(unknown)} images that are not there: {display_list(unknown, 3)}",)


NOTHING_EXCLUDED = Exclusions()


def read_exclusions(file: str | None) -> Exclusions:
    """Read the column `path` of a CSV file; None: nothing is left out.

    Raises:
        ConfigError: no such file, or it is no table with that column.
    """
    if file is None:
        return NOTHING_EXCLUDED
    path = str(Path(file).expanduser())
    if not Path(path).is_file():
        rule = "is a folder, not a file" if Path(path).is_dir() else "no such file"
        raise ConfigError(
            _KEY, file, rule, "name the quarantine.csv of cvtrain check, or a CSV file with a column path"
        )
    try:
        # A manifest whose labels nobody reads.
        rows = read_rows(CsvConfig(root="", file=path, path_column="path", label_column="path"))
        return Exclusions(file, [row.path for row in rows])
    except ConfigError as error:
        raise ConfigError(
            problems=[
                replace(problem, key=_KEY, value=file, remedy="its header row has to name a column path")
                if problem.key == "data.path_column"
                else replace(problem, key=_KEY, value=file)
                for problem in error.problems
            ]
        ) from error
