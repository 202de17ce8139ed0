"""Where a cache goes: what the images come to, and whether memory or disk has room for that."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cvtrain.config.schema.data import DataCache
from cvtrain.data.cache.store import RECORD_BYTES
from cvtrain.data.images.reader import known_formats
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.sources.source import FileSource

# Headers that are read to estimate the size of all images: some 0.1 ms each.
_SAMPLE = 64


@dataclass(frozen=True)
class Choice:
    """Where the cache goes, and why.

    Attributes:
        kind: ram, disk or none.
        reason: in words, for the log.
    """

    kind: DataCache
    reason: str


def estimate_bytes(source: FileSource, form: EvalTransform, channels: int) -> int:
    """What the images of `source` come to when they are stored, by the headers of a few of them, spread evenly."""
    sizes = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(np.int64)):
        shape = _read_shape(source.path(int(index)))
        if shape is not None:
            height, width = form.shrunk_shape(*shape)
            sizes.append(height * width * channels)
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return int(len(source) * (mean + RECORD_BYTES))


def choose(wanted: DataCache, *, num_bytes: int, memory: int, disk_room: Callable[[], int]) -> Choice:
    """Where images of `num_bytes` go by `data.cache`, with room for `memory` and `disk_room()` bytes."""
    size = f"about {gib(num_bytes)}"
    if wanted is not DataCache.auto:
        return Choice(wanted, f"{size}, data.cache={wanted.value}")
    if num_bytes <= memory:
        return Choice(DataCache.ram, f"{size}, where up to {gib(memory)} may be taken")
    on_disk = disk_room()
    if num_bytes <= on_disk:
        return Choice(DataCache.disk, f"{size}, more than the {gib(memory)} that may be taken of memory")
    return Choice(
        DataCache.none,
        f"{size} do not fit into {gib(memory)} of memory, nor into {gib(on_disk)} of the disk of data.cache_dir",
    )


def memory_budget(limit_bytes: int | None, free_bytes: int) -> int:
    """Bytes of memory that a cache may take: half of what is free, or `limit_bytes` if nine tenths of it allow that."""
    return free_bytes // 2 if limit_bytes is None else min(limit_bytes, free_bytes // 10 * 9)


def share(capacity: int, wanted: Sequence[int]) -> list[int]:
    """`capacity` bytes divided in proportion to what is wanted."""
    total = max(1, sum(wanted))
    return [capacity * part // total for part in wanted]


def gib(num_bytes: int) -> str:
    """`0.08 GiB`."""
    return f"{num_bytes / 2**30:.2f} GiB"


def _read_shape(path: str) -> tuple[int, int] | None:
    """Height and width by the header of a file, without regard to its orientation; None if it is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader says what is wrong with a file when it is its turn
            with Image.open(path, formats=known_formats()) as image:
                return image.height, image.width
    except Exception:  # Pillow raises almost any type on damaged bytes.
        return None
