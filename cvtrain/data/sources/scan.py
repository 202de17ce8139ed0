"""Listing the images below a folder, in an order that depends on names only."""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH118, PTH116

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from cvtrain.data.sources.path_table import PathTable, canonical, printable

# Folders that operating systems and file servers make on their own, some of them full of thumbnails.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_EXAMPLES = 3
# Folders read at once. On a network disk each waits for an answer; on a local one this neither helps nor hurts.
_THREADS = 8


@dataclass
class SkippedFiles:
    """Counts of what a scan did not take, with the first few names, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        # The first by name, not the first seen: a folder lists its files in any order.
        examples.append(printable(name))
        examples.sort()
        del examples[_EXAMPLES:]

    def update(self, other: "SkippedFiles") -> None:
        """Add what `other` has."""
        self.counts.update(other.counts)
        for reason, names in other.examples.items():
            self.examples[reason] = sorted([*self.examples.get(reason, []), *names])[:_EXAMPLES]

    def lines(self) -> tuple[str, ...]:
        """One line per reason: `left out 1 (not an image by its extension): train/ants/imageNotFound.gif`."""
        lines = []
        for reason in sorted(self.counts):
            more = self.counts[reason] - len(self.examples[reason])
            names = ", ".join(self.examples[reason]) + (f" and {more} more" if more else "")
            lines.append(f"left out {self.counts[reason]} ({reason}): {names}")
        return tuple(lines)


@dataclass(frozen=True)
class FolderListing:
    """What stands directly in a folder.

    Attributes:
        folders: names of visible folders, sorted.
        images: paths of image files relative to the root of the scan, sorted by name.
        left_out: the rest.
    """

    folders: list[str]
    images: PathTable
    left_out: SkippedFiles


class ImageScanner:
    """Lists folders of images, each read once.

    A name that starts with a dot and the folders of `SYSTEM_FOLDERS` count as hidden. Links to files and folders are
    followed, except a link to a folder that it is itself in.

    Args:
        root: folder that all paths are relative to.
        extensions: lower-case endings such as `.jpg`.

    Attributes:
        left_out: skipped files of all folders that were listed so far.
    """

    def __init__(self, root: str, extensions: tuple[str, ...]) -> None:
        self.root = root
        self.extensions = extensions
        self.left_out = SkippedFiles()
        self._listings: dict[str, FolderListing] = {}

    def list_folder(self, folder: str) -> FolderListing:
        """The visible folders and images directly in `folder` (relative to root, "" for root itself).

        The order is by name in NFC, so it is the same on every file system. What is neither goes to `left_out`.
        """
        listing = self.look_into(folder)
        self.left_out.update(listing.left_out)
        return listing

    def look_into(self, folder: str) -> FolderListing:
        """As `list_folder`, but adds nothing to `left_out`."""
        visit = self._visit(folder, frozenset())
        assert visit.listing is not None
        return visit.listing

    def has_images(self, folder: str) -> bool:
        """True if there is an image in `folder` or below it. Adds nothing to `left_out`."""
        waiting = [(folder, frozenset[tuple[int, int]]())]
        while waiting:
            visit = self._visit(*waiting.pop())
            if visit.listing is not None:
                if visit.listing.images:
                    return True
                waiting += visit.below()
        return False

    def images_below(self, folders: Iterable[str]) -> list[PathTable]:
        """Of each folder the paths, relative to root, of the images in it and in all folders below it."""
        folders = list(folders)
        tree: dict[str, FolderListing | None] = {}
        level = [(folder, frozenset[tuple[int, int]]()) for folder in folders]
        with ThreadPoolExecutor(_THREADS) as threads:
            while level:
                # A few pieces per thread: handing over one folder at a time costs more than a look at it.
                size = -(-len(level) // (4 * _THREADS))
                pieces = [level[first : first + size] for first in range(0, len(level), size)]
                visits = [visit for piece in threads.map(self._visit_all, pieces) for visit in piece]
                tree.update({visit.folder: visit.listing for visit in visits})
                level = [item for visit in visits for item in visit.below()]
        return [PathTable.concatenate(self._collect(folder, tree)) for folder in folders]

    def _collect(self, folder: str, tree: dict[str, FolderListing | None]) -> list[PathTable]:
        listing = tree[folder]
        if listing is None:
            self.left_out.add("link to a folder that it is in", folder)
            return []
        self.left_out.update(listing.left_out)
        below = [table for name in listing.folders for table in self._collect(f"{folder}/{name}", tree)]
        return [listing.images, *below]

    def _visit_all(self, items: list[tuple[str, frozenset[tuple[int, int]]]]) -> list["_Visit"]:
        return [self._visit(*item) for item in items]

    def _visit(self, folder: str, above: frozenset[tuple[int, int]]) -> "_Visit":
        status = os.stat(os.path.join(self.root, folder))
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return _Visit(folder, above, None)
        listing = self._listings.get(folder)
        if listing is None:
            listing = self._listings[folder] = self._read(folder)
        return _Visit(folder, above | {identity}, listing)

    def _read(self, folder: str) -> FolderListing:
        folders, images, left_out = [], [], SkippedFiles()
        prefix = f"{folder}/" if folder else ""
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                name = entry.name
                kind = _kind(entry)
                if name.startswith(".") or (kind == "folder" and name in SYSTEM_FOLDERS):
                    left_out.add("hidden", prefix + name)
                elif kind == "folder":
                    folders.append(name)
                elif kind == "other":
                    left_out.add("broken link or no regular file", prefix + name)
                elif name.lower().endswith(self.extensions):
                    images.append(name)
                else:
                    left_out.add("not an image by its extension", prefix + name)
        for names in (folders, images):
            # Where all names are ASCII, NFC changes none of them.
            names.sort(key=None if "".join(names).isascii() else _by_name)
        table = PathTable.from_strings([prefix + name for name in images])
        return FolderListing(folders, table, left_out)


class _Visit(NamedTuple):
    """A folder that was looked into; no listing: it is a link to a folder that it is in."""

    folder: str
    above: frozenset[tuple[int, int]]
    listing: FolderListing | None

    def below(self) -> list[tuple[str, frozenset[tuple[int, int]]]]:
        """The folders in it, to be visited."""
        names = [] if self.listing is None else self.listing.folders
        return [(f"{self.folder}/{name}" if self.folder else name, self.above) for name in names]


def _kind(entry: "os.DirEntry[str]") -> str:
    """`folder`, `file` or `other`, following links; a link that leads nowhere, or to itself, is `other`."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def _by_name(name: str) -> tuple[str, str]:
    return canonical(name), name
