"""Images without labels: the paths that a folder, a pattern, a list or standard input gives."""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH100, PTH109, PTH110, PTH112, PTH118, PTH120, PTH123, PTH207

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.prediction_paths import LIST_SUFFIXES, STDIN
from cvtrain.config.schema.data import IMAGE_EXTENSIONS, CsvConfig
from cvtrain.data.sources.manifest_rows import read_rows
from cvtrain.data.sources.path_table import PathTable, canonical
from cvtrain.data.sources.scan import ImageScanner


@dataclass(frozen=True)
class Listing:
    """The images of a source.

    Attributes:
        root: what relative paths start from; "" for the working folder.
        paths: as they were given; of a folder, the paths below it.
        left_out: lines on the files of a folder that are no images.
    """

    root: str
    paths: PathTable
    left_out: tuple[str, ...] = ()


def list_images(source: str, *, path_column: str = "path", own: tuple[str, ...] = ()) -> Listing:
    """Return the images that `source` names, in an order that depends on names only, or in that of a list.

    A folder gives the files at any depth whose extension is that of an image. A list and standard input give all that
    they name, there or not; a relative path starts from the working folder, or else from the list's own.

    Args:
        source: a folder, an image, a pattern with `*`, `?`, `[...]` or `**`, a .txt, .csv or .tsv list, or `-`.
        path_column: of a .csv or .tsv list.
        own: files and folders that the caller itself writes, whose content is not taken.

    Raises:
        ConfigError: there are no images, or the list cannot be read.
    """
    left_out: tuple[str, ...] = ()
    root = ""
    try:
        if source == STDIN:
            paths = PathTable.from_iterable(_lines(sys.stdin.buffer))
        elif os.path.isdir(source):
            root, scanner = source, ImageScanner(source, IMAGE_EXTENSIONS)
            paths, left_out = scanner.images_below([""])[0], scanner.left_out.lines()
        elif not os.path.exists(source):
            found = filter(os.path.isfile, glob.iglob(source, recursive=True))
            paths = PathTable.from_iterable(sorted(found, key=lambda path: (canonical(path), path)))
        elif source.lower().endswith(LIST_SUFFIXES):
            paths = PathTable.from_iterable(_read_list(source, path_column))
            root = _root_of_list(source, paths)
        else:
            paths = PathTable.from_iterable([source])
    except OSError as error:
        raise ConfigError("source", source, f"cannot be read: {error.filename or ''} {error.strerror}") from error
    listing = Listing(root, paths, left_out)
    if os.path.isdir(source) or glob.has_magic(source):
        listing = _without(listing, [os.path.realpath(path) for path in own])
    if not len(listing.paths):
        endings = ", ".join(IMAGE_EXTENSIONS)
        raise ConfigError("source", source, "has no images", "\n".join([f"images end in {endings}", *left_out]))
    return listing


def common_folder(listing: Listing) -> str:
    """Return the absolute path of the deepest folder that all images lie in."""
    if listing.root and os.path.isdir(listing.root) and not any(map(os.path.isabs, listing.paths)):
        return os.path.abspath(listing.root)
    common: str | None = None
    for path in listing.paths:
        folder = os.path.dirname(os.path.abspath(os.path.join(listing.root, path)))
        if common is None or (folder != common and not folder.startswith(common.rstrip(os.sep) + os.sep)):
            common = folder if common is None else os.path.commonpath([common, folder])
    return common or os.getcwd()


def _lines(file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a file that are not blank; bytes that are no UTF-8 are kept as they are in file names."""
    for number, line in enumerate(file):
        text = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        if text := text.removeprefix("\ufeff") if number == 0 else text:
            yield text


def _read_list(source: str, path_column: str) -> Iterator[str]:
    if source.lower().endswith(".txt"):
        with open(source, "rb") as file:
            yield from _lines(file)
        return
    try:
        # A manifest whose labels nobody reads.
        config = CsvConfig(root="", file=source, path_column=path_column, label_column=path_column)
        yield from (row.path for row in read_rows(config))
    except ConfigError as error:
        keys = {"data.file": "source", "data.path_column": "path_column"}
        raise ConfigError(
            problems=[
                replace(
                    problem,
                    key=keys.get(problem.key, problem.key),
                    remedy=problem.remedy.replace("data.path_column", "path_column"),
                )
                for problem in error.problems
            ]
        ) from error


def _root_of_list(source: str, paths: PathTable) -> str:
    """The folder that the first path of a list is found from: the working folder, or the list's own."""
    first = paths[0] if len(paths) else ""
    own = os.path.dirname(source)
    return own if not os.path.exists(first) and os.path.exists(os.path.join(own, first)) else ""


def _without(listing: Listing, own: list[str]) -> Listing:
    """The listing without what lies at or below the paths of `own`."""
    base = os.path.realpath(listing.root or os.curdir)
    if not any(path.startswith(base) or listing.root == "" for path in own):
        return listing

    def is_own(path: str) -> bool:
        place = os.path.normpath(os.path.join(base, path))
        return any(place == other or place.startswith(other + os.sep) for other in own)

    kept = np.flatnonzero([not is_own(path) for path in listing.paths])
    return listing if len(kept) == len(listing.paths) else replace(listing, paths=listing.paths.take(kept))
