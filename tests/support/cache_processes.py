"""What child processes of the cache's tests run; a spawned one has to import it."""

import os
from pathlib import Path

import numpy as np

from cvtrain.data.cache.store import ImageFile, SharedFile, memory_file, write_header


def image(index: int) -> np.ndarray:
    """(H, W, 3) uint8 of a size and a content of its own."""
    shape = (5 + index % 7, 4 + index % 11, 3)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def in_memory(num_images: int, capacity: int = 1 << 30) -> ImageFile:
    file = memory_file()
    write_header(file.descriptor, {}, num_images)
    return ImageFile(file, channels=3, capacity=capacity, verify=False)


def on_disk(path: Path, num_images: int = 0, capacity: int = 1 << 30, min_free_bytes: int = 0) -> ImageFile:
    """The file at `path`, made if it is not there."""
    is_new = not path.exists()
    file = SharedFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    if is_new:
        write_header(file.descriptor, {"key": path.stem}, num_images)
    return ImageFile(file, channels=3, capacity=capacity, verify=True, min_free_bytes=min_free_bytes)


def fill(store: ImageFile, indices: range) -> None:
    for index in indices:
        store.put(index, image(index))


def read_all(store: ImageFile) -> int:
    """How many images are there; each must be right."""
    found = 0
    for index in range(store.num_images):
        pixels = store.get(index)
        if pixels is not None:
            assert np.array_equal(pixels, image(index)), index
            found += 1
    return found
