"""What is measured of each image: one read and one decode, in data workers."""

import functools
import hashlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.integrity import file_format
from cvtrain.data.images.reader import Reader, known_formats
from cvtrain.data.loader.worker_errors import WorkerSettings, explain_worker_error, raise_open_file_limit
from cvtrain.data.sources.source import FileSource, ImageSource, Splits
from cvtrain.runtime.signals import SIGNALS

# Side of the grey thumbnail that stands for an image.
THUMB = 16
# Side of the colour thumbnail that is compared closely. Those of so many images are kept (490 MB); of more, the images
# that look alike are read again.
LOOK, MAX_LOOKS = 32, 160_000
# Images with a longer side are halved until they have none, so that the sharpness of photos of all sizes compares.
MAX_SIDE = 320
# Images that a worker measures at once.
CHUNK = 64
_EXIF_MAKE, _EXIF_MODEL = 0x010F, 0x0110


class CheckedImages:
    """The images of all splits of a set, by one index: train first, then val, then test.

    Attributes:
        classes: names; the class id is the position.
        splits: names of the splits that there are.
        labels: (N,) int64 class ids.
        split_ids: (N,) int8 positions in `splits`.
    """

    def __init__(self, splits: Splits) -> None:
        parts = splits.parts()
        self.classes = splits.classes
        self.splits = tuple(parts)
        self.sources: tuple[ImageSource, ...] = tuple(parts.values())
        self.labels = np.concatenate([source.labels for source in self.sources])
        sizes = [len(source) for source in self.sources]
        self.split_ids = np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)
        self.starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return len(self.labels)

    def locate(self, index: int) -> tuple[ImageSource, int]:
        """Return the source of image `index` and its place there."""
        split = int(self.split_ids[index])
        return self.sources[split], index - int(self.starts[split])

    def name(self, index: int) -> str:
        source, place = self.locate(index)
        return source.name(place)

    def read(self, index: int) -> np.ndarray:
        """Return image `index`, (H, W, C) uint8; raises BadImageError."""
        source, place = self.locate(index)
        return source.read(place)

    def open_file(self, index: int) -> tuple[bytes, Callable[[], np.ndarray]]:
        """Return the file of image `index`, nothing if it is none, and what decodes it to (H, W, C) uint8.

        Raises:
            BadImageError: the file cannot be read; what is returned raises it, too.
        """
        source, place = self.locate(index)
        if isinstance(source, FileSource) and isinstance(source.reader, Reader):
            path = source.path(place)
            data = source.reader.read(path)
            return data, functools.partial(source.reader.decode, data, path)
        return b"", functools.partial(source.read, place)


@dataclass
class Measurements:
    """What was measured of N images. Images that cannot be read have zeros, and an entry in `errors`.

    Attributes:
        digests: (N, 2) uint64 BLAKE2b of the file's bytes; zeros for images that are no files.
        num_bytes: (N,) int64 size of the file.
        heights, widths: (N,) int32, upright.
        thumbs: (N, 16, 16) uint8 grey, the aspect lost.
        looks: (N, 32, 32, 3) uint8 in colour, zeros for images with a shorter side; None: they were not kept.
        means, contrasts: (N,) float32 mean and standard deviation of the grey values, 0..255.
        sharpness: (N,) float32 standard deviation of the Laplacian over that of the grey values.
        formats: (N,) int16 positions in `format_names`, by the first bytes of the file.
        cameras: (N,) int16 positions in `camera_names`, by EXIF.
        errors: cause by index.
    """

    digests: np.ndarray
    num_bytes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    thumbs: np.ndarray
    looks: np.ndarray | None
    means: np.ndarray
    contrasts: np.ndarray
    sharpness: np.ndarray
    formats: np.ndarray
    cameras: np.ndarray
    format_names: list[str]
    camera_names: list[str]
    errors: dict[int, str]

    @classmethod
    def empty(cls, count: int) -> "Measurements":
        """Return zeros for `count` images."""
        return cls(
            digests=np.zeros((count, 2), np.uint64),
            num_bytes=np.zeros(count, np.int64),
            heights=np.zeros(count, np.int32),
            widths=np.zeros(count, np.int32),
            thumbs=np.zeros((count, THUMB, THUMB), np.uint8),
            looks=np.zeros((count, LOOK, LOOK, 3), np.uint8) if count <= MAX_LOOKS else None,
            means=np.zeros(count, np.float32),
            contrasts=np.zeros(count, np.float32),
            sharpness=np.zeros(count, np.float32),
            formats=np.zeros(count, np.int16),
            cameras=np.zeros(count, np.int16),
            format_names=[""],
            camera_names=[""],
            errors={},
        )

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool: the image could be read."""
        return self.heights > 0


@dataclass
class _Chunk:
    """The measurements of the images from `first` on, with the names of their formats and cameras."""

    first: int
    arrays: dict[str, np.ndarray]
    formats: list[str]
    cameras: list[str]
    errors: dict[int, str]


def measure_images(
    images: CheckedImages, *, num_workers: int, on_images: Callable[[int], None] = lambda count: None
) -> Measurements:
    """Read and decode every image once.

    Args:
        num_workers: processes that do it; 0: this one.
        on_images: is told how many images were measured since it was last told.

    Raises:
        DataWorkerError: a worker died.
    """
    found = Measurements.empty(len(images))
    formats, cameras = {"": 0}, {"": 0}
    for chunk in _chunks(_ChunkDataset(images), num_workers):
        last = chunk.first + len(chunk.formats)
        for name, values in chunk.arrays.items():
            array = getattr(found, name)
            if array is not None:
                array[chunk.first : last] = values
        found.formats[chunk.first : last] = [formats.setdefault(name, len(formats)) for name in chunk.formats]
        found.cameras[chunk.first : last] = [cameras.setdefault(name, len(cameras)) for name in chunk.cameras]
        found.errors.update(chunk.errors)
        on_images(len(chunk.formats))
    found.format_names, found.camera_names = list(formats), list(cameras)
    return found


def _chunks(dataset: "_ChunkDataset", num_workers: int) -> Iterator[_Chunk]:
    """Yield every chunk, in order."""
    if num_workers == 0:
        yield from (dataset[number] for number in range(len(dataset)))
        return
    raise_open_file_limit()
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(num_workers, len(dataset)),
        worker_init_fn=_init_worker,
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except Exception as error:
        explained = explain_worker_error(error, [], WorkerSettings(num_workers, 2, CHUNK))
        if explained is None:
            raise
        raise explained from None


def _as_it_is(made: Any) -> Any:
    return made


def _init_worker(worker: int) -> None:
    """One thread, and no reaction to signals: the main process ends its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(0)


class _ChunkDataset(Dataset[_Chunk]):
    """Measures images, CHUNK at once."""

    def __init__(self, images: CheckedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images) // CHUNK)

    def __getitem__(self, number: int) -> _Chunk:
        first = number * CHUNK
        count = min(CHUNK, len(self.images) - first)
        formats, cameras, errors = [], [], {}
        digests, sizes, values, thumbs, looks = [], [], [], [], []
        for index in range(first, first + count):
            data, measured = b"", UNREADABLE
            try:
                data, decode = self.images.open_file(index)
                measured = measure_pixels(decode())
            except BadImageError as error:
                errors[index] = error.cause
            digests.append(hashlib.blake2b(data, digest_size=16).digest() if data else bytes(16))
            sizes.append(len(data))
            thumbs.append(measured.thumb)
            looks.append(measured.look)
            values.append(measured[2:])
            formats.append(file_format(data))
            cameras.append(camera_of(data))
        table = np.array(values)
        arrays = {
            "digests": np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2),
            "num_bytes": np.array(sizes),
            "thumbs": np.stack(thumbs),
            **({"looks": np.stack(looks)} if len(self.images) <= MAX_LOOKS else {}),
            **{name: table[:, column] for column, name in enumerate(_COLUMNS)},
        }
        return _Chunk(first, arrays, formats, cameras, errors)


class PixelMeasurements(NamedTuple):
    """What the pixels of one image come to; see `Measurements`."""

    thumb: np.ndarray
    look: np.ndarray
    height: int
    width: int
    mean: float
    contrast: float
    sharpness: float


_NO_LOOK = np.zeros((LOOK, LOOK, 3), np.uint8)
UNREADABLE = PixelMeasurements(np.zeros((THUMB, THUMB), np.uint8), _NO_LOOK, 0, 0, 0.0, 0.0, 0.0)
_COLUMNS = ("heights", "widths", "means", "contrasts", "sharpness")


def measure_pixels(pixels: np.ndarray) -> PixelMeasurements:
    """Return size, thumbnail, brightness, contrast and sharpness of an image (H, W, 1 or 3) uint8."""
    import cv2

    height, width = pixels.shape[:2]
    # Halving is fast, and all that follows is then on a quarter of the pixels.
    while max(pixels.shape[:2]) > MAX_SIDE and min(pixels.shape[:2]) >= 4 * LOOK:
        rows, columns = pixels.shape[0] // 2, pixels.shape[1] // 2
        halved = cv2.resize(pixels[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
        pixels = halved.reshape(rows, columns, -1)
    grey = pixels[:, :, 0] if pixels.shape[2] == 1 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    has_look = min(height, width) >= LOOK
    look = _look(pixels) if has_look else _NO_LOOK
    mean, contrast = cv2.meanStdDev(grey)
    # Of a flat picture neither is above rounding, and their ratio says nothing.
    edges = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1]
    spread = float(contrast[0, 0])
    return PixelMeasurements(
        shrink(cv2.cvtColor(look, cv2.COLOR_RGB2GRAY) if has_look else grey, THUMB),
        look,
        height,
        width,
        float(mean[0, 0]),
        spread,
        float(edges[0, 0]) / max(spread, 1.0),
    )


def _look(pixels: np.ndarray) -> np.ndarray:
    """(32, 32, 3) uint8 of an image in colour or grey."""
    small = shrink(pixels, LOOK)
    return small if small.ndim == 3 else np.repeat(small[:, :, None], 3, axis=2)


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W) or (H, W, C) uint8 to a square of `size`, by the mean of areas where it becomes smaller."""
    import cv2

    is_larger = min(pixels.shape[:2]) >= size
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if is_larger else cv2.INTER_LINEAR)


def camera_of(data: bytes) -> str:
    """Return maker and model of the camera by EXIF, one line; empty if the file does not say."""
    if data.find(b"Exif\0", 0, 4096) < 0:
        return ""
    try:
        with Image.open(io.BytesIO(data), formats=known_formats()) as image:
            exif = image.getexif()
            words = [str(exif.get(tag, "")).strip("\0 ") for tag in (_EXIF_MAKE, _EXIF_MODEL)]
    except Exception:  # Pillow raises almost any type on a damaged block
        return ""
    maker, model = words
    return " ".join((model if model.startswith(maker) else f"{maker} {model}").split())[:100]
