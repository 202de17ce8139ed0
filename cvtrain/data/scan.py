"""Listing the images below a folder, in an order that depends on names only."""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH118, PTH116

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cvtrain.data.paths import PathTable, canonical, printable

# Folders that operating systems and file servers make on their own, some of them full of thumbnails.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_EXAMPLES = 3


@dataclass
class LeftOut:
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

    def lines(self) -> tuple[str, ...]:
        """One line per reason: `left out 1 (not an image by its extension): train/ants/imageNotFound.gif`."""
        lines = []
        for reason in sorted(self.counts):
            more = self.counts[reason] - len(self.examples[reason])
            names = ", ".join(self.examples[reason]) + (f" and {more} more" if more else "")
            lines.append(f"left out {self.counts[reason]} ({reason}): {names}")
        return tuple(lines)


@dataclass
class FolderListing:
    """What stands directly in a folder: names of visible folders and of image files, sorted."""

    folders: list[str]
    images: list[str]


class ImageScanner:
    """Lists folders of images.

    A name that starts with a dot and the folders of `SYSTEM_FOLDERS` count as hidden. Links to files and folders are
    followed, except a link to a folder that it is itself in.

    Args:
        root: folder that all paths are relative to.
        extensions: lower-case endings such as `.jpg`.
    """

    def __init__(self, root: str, extensions: tuple[str, ...]) -> None:
        self.root = root
        self.extensions = extensions
        self.left_out = LeftOut()

    def list_folder(self, folder: str) -> FolderListing:
        """The visible folders and images directly in `folder` (relative to root, "" for root itself).

        The order is by name in NFC, so it is the same on every file system. What is neither goes to `left_out`.
        """
        listing = FolderListing([], [])
        prefix = f"{folder}/" if folder else ""
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                kind = _kind(entry)
                if entry.name.startswith(".") or (kind == "folder" and entry.name in SYSTEM_FOLDERS):
                    self.left_out.add("hidden", prefix + entry.name)
                elif kind == "folder":
                    listing.folders.append(entry.name)
                elif kind == "other":
                    self.left_out.add("broken link or no regular file", prefix + entry.name)
                elif entry.name.lower().endswith(self.extensions):
                    listing.images.append(entry.name)
                else:
                    self.left_out.add("not an image by its extension", prefix + entry.name)
        for names in (listing.folders, listing.images):
            names.sort(key=_by_name)
        return listing

    def has_images(self, folder: str) -> bool:
        """True if there is an image in `folder` or below it. Adds nothing to `left_out`."""
        probe = ImageScanner(self.root, self.extensions)
        return next(probe._walk(folder, frozenset()), None) is not None

    def images_below(self, folder: str) -> PathTable:
        """Paths, relative to root, of the images in `folder` and in all folders below it."""
        return PathTable.from_iterable(self._walk(folder, frozenset()))

    def _walk(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = os.stat(os.path.join(self.root, folder))
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self.left_out.add("link to a folder that it is in", folder)
            return
        listing = self.list_folder(folder)
        for name in listing.images:
            yield f"{folder}/{name}"
        for name in listing.folders:
            yield from self._walk(f"{folder}/{name}", above | {identity})


def _kind(entry: "os.DirEntry[str]") -> str:
    """`folder`, `file` or `other`, following links; a link that leads nowhere, or to itself, is `other`."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def _by_name(name: str) -> tuple[str, str]:
    return canonical(name), name
