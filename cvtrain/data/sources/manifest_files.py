"""Find the files that a manifest names: those with another Unicode form of a name too, and what helps if some are not
there."""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH100, PTH112, PTH113, PTH118, PTH120, PTH208

import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import IMAGE_EXTENSIONS
from cvtrain.data.sources.path_table import PathTable, canonical, printable

_NAMED_FILES = 5
_THREADS = 8
_CHECKED_AT_ONCE = 4096
_SEARCHED_FOLDERS = 100
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:/")


def find_files(paths: PathTable, numbers: np.ndarray, root: str, *, file: str) -> PathTable:
    """Return `paths` as the files are really named; one `stat` per image.

    A path that is wrong in the last row should not be found hours into the run.

    Args:
        paths: N paths, relative to `root` or absolute.
        numbers: (N,) int64 line numbers, for errors.
        file: the manifest, for errors.

    Raises:
        ConfigError: files are missing; it names the first lines, and the setting to change where one would help.
    """
    missing = _missing_rows(paths, root)
    found: dict[int, str] = {}
    names_by_form = functools.cache(_names_by_form)
    for row in missing:
        if not paths[row].isascii():
            other = _other_form(root, paths[row], names_by_form)
            if other is not None:
                found[row] = other
    missing = [row for row in missing if row not in found]
    if missing:
        first = ", ".join(f"{printable(paths[row])} (line {numbers[row]})" for row in missing[:_NAMED_FILES])
        first += " and more" if len(missing) > _NAMED_FILES else ""
        rule = f"{len(missing)} of {len(paths)} files are missing below {os.path.abspath(root)}: {first}"
        remedy = _remedy(root, paths[missing[0]])
        raise ConfigError("data.file", file, rule, remedy)
    if not found:
        return paths
    return PathTable.from_iterable(found.get(row, path) for row, path in enumerate(paths))


def _missing_rows(paths: PathTable, root: str) -> list[int]:
    def missing_from(first: int) -> list[int]:
        rows = range(first, min(first + _CHECKED_AT_ONCE, len(paths)))
        return [row for row in rows if not os.path.isfile(os.path.join(root, paths[row]))]

    # Threads, since on a network disk each file is an answer to wait for; on a local one they cost nothing.
    with ThreadPoolExecutor(_THREADS) as threads:
        starts = range(0, len(paths), _CHECKED_AT_ONCE)
        return [row for rows in threads.map(missing_from, starts) for row in rows]


def _other_form(root: str, path: str, names_by_form: Callable[[str], dict[str, str]]) -> str | None:
    """`path` with each part as it is spelled on the disk, in NFC, NFD or a mixture of both; None if it is not there."""
    found = "/" if path.startswith("/") else ""
    for part in path.strip("/").split("/"):
        spelling = part if os.path.lexists(os.path.join(root, found, part)) else None
        spelling = spelling or names_by_form(os.path.join(root, found)).get(canonical(part))
        if spelling is None:
            return None
        found = posixpath.join(found, spelling)
    return found if os.path.isfile(os.path.join(root, found)) else None


def _names_by_form(folder: str) -> dict[str, str]:
    """The names in `folder` by their canonical form."""
    return {canonical(name): name for name in _names(folder)}


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _remedy(root: str, path: str) -> str:
    """The settings under which the missing `path` would be found, or what lies there instead."""
    for folder in _folders_to_try(root):
        for suffix in ("", *IMAGE_EXTENSIONS, *(ending.upper() for ending in IMAGE_EXTENSIONS)):
            found = os.path.normpath(os.path.join(folder, path + suffix))
            if os.path.isfile(found):
                settings = [f"data.root={folder}"] * (folder != root) + [f"data.path_suffix={suffix}"] * bool(suffix)
                return f"{printable(found)} is there: set {' '.join(settings)}"
    parent, name = posixpath.split(path)
    for other in _names(os.path.join(root, parent)):
        if canonical(other).casefold() == canonical(name).casefold():
            return f"{printable(other)} is there: upper and lower case must agree"
        if other.lower().endswith(IMAGE_EXTENSIONS) and posixpath.splitext(other)[0] == posixpath.splitext(name)[0]:
            return f"{printable(other)} is there, with another ending"
    if _WINDOWS_DRIVE.match(path):
        return "it is a path on a drive of Windows: write paths that start from data.root"
    return "paths start from data.root, by default the manifest's own folder"


def _folders_to_try(root: str) -> Iterator[str]:
    """The root, the folders in it, the folder above it and the working folder."""
    yield root
    inside = [os.path.join(root, name) for name in _names(root) if not name.startswith(".")]
    yield from [folder for folder in inside if os.path.isdir(folder)][:_SEARCHED_FOLDERS]
    yield os.path.dirname(os.path.abspath(root))
    yield os.curdir
