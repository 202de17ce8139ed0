"""`ScanCache`: what stood in the folders of a set at its last scan, on disk, so that only changed ones are read.

A folder is taken as unchanged if its inode, its time of modification and its time of change are what they were: names
that are added, removed or renamed change them, on local disks and on NFS. What a file holds, and where a link to a file
leads, does not matter to a listing, and is not noticed. A folder that changed less than two seconds before it was read
is read again the next time, since a later change could fall into the same tick of the disk's clock.

The file: 8 bytes of magic and version, a BLAKE2b digest of the rest, the length of a JSON header, the header, then
arrays one after the other. It is written whole or not at all; of two runs that write at once the later one wins.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.scan import NOTHING_LEFT_OUT, FolderListing, FolderStamp, ImageScanner, SkippedFiles
from cvtrain.runtime.files import atomic_write

log = logging.getLogger(__name__)

ENDING = ".scan"
# Below this many images a scan takes less than the tenth of a second that reading a listing would save.
MIN_IMAGES = 20_000

_MAGIC = b"cvscan\x00\x01"
_DIGEST_BYTES = 16
_TICK_NS = 2_000_000_000
_UNKNOWN = FolderStamp(-1, -1, -1)


@dataclass(frozen=True)
class _Arrays:
    """The listings of F folders.

    Attributes:
        folders: F paths relative to the root.
        stamps: (F, 3) int64, see `FolderStamp`.
        num_images, num_below: (F,) int64, images and folders in each.
        images: the paths of all images, folder by folder.
        below: the names of all folders within, folder by folder.
        left_out: by number of the folder, as text since JSON has no other keys: reason to [count, names].
    """

    folders: PathTable
    stamps: np.ndarray
    num_images: np.ndarray
    num_below: np.ndarray
    images: PathTable
    below: PathTable
    left_out: Mapping[str, Mapping[str, Any]]


class ScanCache:
    """The listings of one root under one list of extensions, in a folder of caches.

    Args:
        folder: where caches are kept, `data.cache_dir`.
        root: what is scanned.
        extensions: lower-case endings of images.
    """

    def __init__(self, folder: Path, root: str, extensions: tuple[str, ...]) -> None:
        self.subject = {"root": os.path.realpath(root), "extensions": sorted(extensions)}
        digest = hashlib.blake2b(json.dumps(self.subject, sort_keys=True).encode(), digest_size=16)
        self.path = folder / f"{digest.hexdigest()}{ENDING}"
        self.num_known = 0
        self._began = time.time_ns()
        self._arrays: _Arrays | None = None
        self._row_of: dict[str, int] = {}
        self._image_ends = self._below_ends = np.zeros(1, np.int64)
        self._load()

    def get(self, folder: str, stamp: FolderStamp) -> FolderListing | None:
        """What stood in `folder` when it had this stamp; None if that is not known."""
        row = self._row_of.get(folder)
        if row is None or self._arrays is None or tuple(self._arrays.stamps[row].tolist()) != stamp:
            return None
        images, below = self._image_ends[row : row + 2], self._below_ends[row : row + 2]
        return FolderListing(
            list(self._arrays.below.rows(*below)),
            self._arrays.images.rows(*images),
            _unpack_left_out(self._arrays.left_out.get(str(row))),
        )

    def keep(self, scanner: ImageScanner) -> None:
        """Keep what `scanner` found for the next scan, if it is large and not what is kept already.

        A disk that is full or cannot be written is no more than a line in the log.
        """
        num_images = sum(len(listing.images) for _, listing in scanner.listings.values())
        if num_images < MIN_IMAGES:
            return
        num_folders, num_read = len(scanner.listings), len(scanner.read)
        log.info("scan: %d images, %d of %d folders were read anew", num_images, num_read, num_folders)
        if num_read == 0 and num_folders == self.num_known:
            return
        try:
            write_listings(self.path, self.subject, scanner.listings, began_ns=self._began)
        except OSError as error:
            log.info("scan: %s: all folders are read again the next time", error)

    def _load(self) -> None:
        try:
            header, self._arrays = read_listings(self.path)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("scan: %s cannot be used, so all folders are read: %s", self.path, error)
            return
        if header["subject"] != self.subject:
            self._arrays = None
            return
        self.num_known = len(self._arrays.folders)
        self._row_of = {folder: row for row, folder in enumerate(self._arrays.folders)}
        self._image_ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._arrays.num_images)])
        self._below_ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._arrays.num_below)])


def write_listings(
    path: Path, subject: Mapping[str, Any], listings: Mapping[str, tuple[FolderStamp, FolderListing]], *, began_ns: int
) -> None:
    """Write `listings` of a scan that began at `began_ns` (since 1970) to `path`, whole or not at all."""
    stamps = [
        stamp if max(stamp.modified, stamp.changed) < began_ns - _TICK_NS else _UNKNOWN
        for stamp, _ in listings.values()
    ]
    found = [listing for _, listing in listings.values()]
    tables = (
        PathTable.from_strings(list(listings)),
        PathTable.concatenate([listing.images for listing in found]),
        PathTable.from_strings([name for listing in found for name in listing.folders]),
    )
    arrays = [
        np.array(stamps, np.int64).reshape(-1, 3),
        np.array([len(listing.images) for listing in found], np.int64),
        np.array([len(listing.folders) for listing in found], np.int64),
        *(array for table in tables for array in (table.offsets, table.buffer)),
    ]
    left_out = {
        str(row): {reason: [count, listing.left_out.examples[reason]] for reason, count in counts.items()}
        for row, listing in enumerate(found)
        if (counts := listing.left_out.counts)
    }
    header = {
        "subject": subject,
        "num_images": len(tables[1]),
        "sizes": [array.size for array in arrays],
        "left_out": left_out,
    }
    text = json.dumps(header).encode()
    pieces: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    pieces += [np.ascontiguousarray(array).data for array in arrays]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    with atomic_write(path, text=False) as file:
        file.write(_MAGIC + digest.digest())
        for piece in pieces:
            file.write(piece)


def read_listings(path: Path) -> tuple[dict[str, Any], _Arrays]:
    """The header and the arrays of the file `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another version.
    """
    content = path.read_bytes()
    start = len(_MAGIC) + _DIGEST_BYTES
    if not content.startswith(_MAGIC):
        raise ValueError("it is no listing of this version")
    payload = memoryview(content)[start:]
    if hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() != content[len(_MAGIC) : start]:
        raise ValueError("its digest does not fit, it is damaged")
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(bytes(payload[8 : 8 + length]))
    place, arrays = 8 + length, []
    for number, size in enumerate(header["sizes"]):
        dtype = np.dtype(np.uint8 if number in (4, 6, 8) else np.int64)
        # A copy, since the bytes of the file need not lie where 8-byte numbers may.
        arrays.append(np.frombuffer(bytes(payload[place : place + size * dtype.itemsize]), dtype))
        place += size * dtype.itemsize
    stamps, num_images, num_below, *tables = arrays
    folders, images, below = (PathTable(tables[at + 1], tables[at]) for at in (0, 2, 4))
    return header, _Arrays(folders, stamps.reshape(-1, 3), num_images, num_below, images, below, header["left_out"])


def read_subject(path: Path) -> dict[str, Any]:
    """What the listing at `path` is of: `root`, `extensions`, `num_images`; empty if it is damaged."""
    try:
        header, _ = read_listings(path)
    except (OSError, ValueError):
        return {}
    return {**header["subject"], "num_images": header["num_images"]}


def _unpack_left_out(packed: Mapping[str, Any] | None) -> SkippedFiles:
    if not packed:
        return NOTHING_LEFT_OUT
    left_out = SkippedFiles()
    for reason, (count, names) in packed.items():
        left_out.counts[reason] = count
        left_out.examples[reason] = list(names)
    return left_out
