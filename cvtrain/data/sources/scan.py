"""Listing the images below a folder, in an order that depends on names only."""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH118, PTH116

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cvtrain.data.sources.path_table import PathTable, canonical, printable

# Folders that operating systems and file servers make on their own, some of them full of thumbnails.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_EXAMPLES = 3
# Class folders read at once. On a network disk each waits for an answer; on a local one this neither helps nor hurts.
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
    """Content of one folder.

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
        if folder not in self._listings:
            self._listings[folder] = self._read(folder)
        return self._listings[folder]

    def has_images(self, folder: str) -> bool:
        """True if there is an image in `folder` or below it. Adds nothing to `left_out`."""
        return any(listing.images for listing in self._walk(folder))

    def images_below(self, folders: Sequence[str]) -> list[PathTable]:
        """Return, for each folder, the paths relative to root of the images in it and in all folders below it."""
        with ThreadPoolExecutor(_THREADS) as threads:
            trees = list(threads.map(lambda folder: list(self._walk(folder)), folders))
        for listing in itertools.chain.from_iterable(trees):
            self.left_out.update(listing.left_out)
        return [PathTable.concatenate([listing.images for listing in tree]) for tree in trees]

    def _walk(self, folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[FolderListing]:
        """Yield the listings of `folder` and of all folders below it, depth first.

        Args:
            above: device and inode of the folders that it is in.
        """
        status = os.stat(os.path.join(self.root, folder))
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            loop = SkippedFiles()
            loop.add("link to a folder that it is in", folder)
            yield FolderListing([], PathTable.from_strings([]), loop)
            return
        listing = self.look_into(folder)
        yield listing
        for name in listing.folders:
            yield from self._walk(f"{folder}/{name}" if folder else name, above | {identity})

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


def _kind(entry: "os.DirEntry[str]") -> str:
    """`folder`, `file` or `other`, following links; a link that leads nowhere, or to itself, is `other`."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def _by_name(name: str) -> tuple[str, str]:
    return canonical(name), name
