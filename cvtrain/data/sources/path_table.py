"""`PathTable`: millions of paths in two arrays.

A Python list of a million strings costs about 100 MB and, worse, every worker process that looks at one writes its
reference count and so copies the page: the list is soon there once per worker. Arrays have no reference counts per
element, so forked workers share them.
"""

import hashlib
import itertools
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cvtrain.config.text import display_text

_TAKE_ROWS = 65_536  # rows gathered at once: bounds the index array, 8 bytes per path byte


def printable(text: str) -> str:
    """Return a name of a file or class as it is shown and kept: see `display_text`."""
    return text if text.isascii() and text.isprintable() else display_text(text)


def canonical(text: str) -> str:
    """`text` in Unicode form NFC. macOS stores names decomposed: the same folder copied to Linux must sort, match
    and split alike."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class PathTable:
    """A read-only sequence of strings, kept as UTF-8 in one buffer.

    Args:
        buffer: (total bytes,) uint8, all strings one after the other.
        offsets: (N + 1,) int64, where string i is `buffer[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray) -> None:
        self.buffer = buffer
        self.offsets = offsets

    @classmethod
    def from_iterable(cls, paths: Iterable[str]) -> "PathTable":
        """Read `paths` once, without holding them as strings."""
        buffer = bytearray()
        offsets = array("q", [0])
        for path in paths:
            buffer += path.encode("utf-8", "surrogateescape")
            offsets.append(len(buffer))
        return cls(np.frombuffer(bytes(buffer), dtype=np.uint8), np.array(offsets, dtype=np.int64))

    @classmethod
    def from_strings(cls, paths: Sequence[str]) -> "PathTable":
        """The strings of a list, which are encoded all at once where they are ASCII."""
        text = "".join(paths)
        if not text.isascii():
            return cls.from_iterable(paths)
        ends = np.cumsum(np.fromiter(map(len, paths), np.int64, len(paths)))
        return cls(np.frombuffer(text.encode(), dtype=np.uint8), np.concatenate([np.zeros(1, np.int64), ends]))

    @classmethod
    def concatenate(cls, tables: Sequence["PathTable"]) -> "PathTable":
        """The rows of all `tables`, in order."""
        ends = np.cumsum([0, *(len(table.buffer) for table in tables)], dtype=np.int64)
        buffer = np.concatenate([np.zeros(0, np.uint8), *(table.buffer for table in tables)])
        shifted = [table.offsets[1:] + start for table, start in zip(tables, ends[:-1], strict=True)]
        return cls(buffer, np.concatenate([np.zeros(1, np.int64), *shifted]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a table with {len(self)} rows")
        row = index % len(self)
        return self.buffer[self.offsets[row] : self.offsets[row + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.buffer.nbytes + self.offsets.nbytes

    def rows(self, first: int, last: int) -> "PathTable":
        """The rows from `first` up to `last`; the strings are not copied."""
        start, stop = self.offsets[first], self.offsets[last]
        return PathTable(self.buffer[start:stop], self.offsets[first : last + 1] - start)

    def take(self, indices: np.ndarray) -> "PathTable":
        """The rows at `indices` (M,) int64, in that order."""
        starts, stops = self.offsets[indices], self.offsets[indices + 1]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(stops - starts)])
        buffer = np.empty(offsets[-1], np.uint8)
        for first in range(0, len(indices), _TAKE_ROWS):
            last = min(first + _TAKE_ROWS, len(indices))
            low, high = offsets[first], offsets[last]
            # The byte at position p of the result comes from p + (old start - new start) of its row.
            shift = np.repeat(starts[first:last] - offsets[first:last], (stops - starts)[first:last])
            buffer[low:high] = self.buffer[np.arange(low, high) + shift]
        return PathTable(buffer, offsets)

    def hashes(self, seed: int) -> np.ndarray:
        """(N,) uint64: BLAKE2b of (seed, row in NFC), equal on every platform and in every version of Python."""
        key = (seed % 2**64).to_bytes(8, "little")
        digests = bytearray()
        for first in range(0, len(self), _TAKE_ROWS):
            for text in self.rows(first, min(first + _TAKE_ROWS, len(self)))._canonical_bytes():
                digests += hashlib.blake2b(text, digest_size=8, key=key).digest()
        return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)

    def _canonical_bytes(self) -> Iterator[bytes]:
        """Each row in NFC, as UTF-8."""
        content = self.buffer.tobytes()
        if content.isascii():  # then NFC changes nothing
            ends = self.offsets.tolist()
            yield from (content[start:stop] for start, stop in itertools.pairwise(ends))
        else:
            yield from (canonical(path).encode("utf-8", "surrogateescape") for path in self)
