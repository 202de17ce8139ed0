"""The images of a split by the names of its table: thumbnails for a page, and how bright and how large they are."""

import io
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cvtrain.data.images.convert import pil_to_array, read_orientation
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.integrity import check_whole
from cvtrain.data.images.reader import Reader, known_formats
from cvtrain.data.sources.source import FileSource, ImageSource
from cvtrain.runtime.html_page import image_element

# Of a page's 5 MB, those that thumbnails may take.
MAX_THUMBNAIL_BYTES = 3_500_000
# JPEG files are decoded at an eighth to the full of their size, so that their sides are at least these.
_THUMBNAIL_SIDE, _MEASURED_SIDE = 128, 32
# Pixels that are decoded, at most, to measure images: about two seconds.
_MAX_PIXELS = 150_000_000


@dataclass(frozen=True)
class Measured:
    """What is measured of an image: mean grey value, 0..255, and pixels of the file."""

    brightness: float
    num_pixels: int


class Pictures:
    """Images of a split, found by their names.

    Args:
        source: where they are read from; None: nowhere, so that there are none.
        names: those that will be asked for.
        max_bytes: that all thumbnails take together; later ones are left out.
    """

    def __init__(self, source: ImageSource | None, names: Iterable[str], max_bytes: int = MAX_THUMBNAIL_BYTES) -> None:
        wanted = set(names)
        self.source = source
        self._bytes_left = max_bytes
        self._places: dict[str, int] = {}
        if source is not None:
            all_names = ((place, source.name(place)) for place in range(len(source)))
            self._places = {name: place for place, name in all_names if name in wanted}

    def __bool__(self) -> bool:
        """True if there are images."""
        return bool(self._places)

    def element(self, name: str) -> str:
        """Return the `img` element of an image; nothing if it is not there or not readable, or the page is full."""
        if name not in self._places or self._bytes_left <= 0:
            return ""
        try:
            element = image_element(self._read(name, _THUMBNAIL_SIDE)[0], name)
        except BadImageError:
            return ""
        self._bytes_left -= len(element)
        return element

    def measure(self, names: Iterable[str]) -> Iterator[tuple[str, Measured]]:
        """Yield what is measured of the images, until enough pixels are decoded."""
        decoded = 0
        for name in names:
            if name not in self._places or decoded > _MAX_PIXELS:
                continue
            try:
                pixels, num_pixels, num_decoded = self._read(name, _MEASURED_SIDE)
            except BadImageError:
                continue
            decoded += num_decoded
            yield name, Measured(float(pixels.mean()), num_pixels)

    def _read(self, name: str, side: int) -> tuple[np.ndarray, int, int]:
        """Return (H, W, C) uint8, perhaps smaller than the file's image; the file's pixels; those that were decoded."""
        assert self.source is not None
        place = self._places[name]
        if isinstance(self.source, FileSource) and isinstance(self.source.reader, Reader):
            path = self.source.path(place)
            data = self.source.reader.read(path)
            small = _read_small_jpeg(data, self.source.reader, side)
            if small is not None:
                return small
            pixels = self.source.reader.decode(data, path)
        else:
            pixels = self.source.read(place)
        return pixels, pixels.shape[0] * pixels.shape[1], pixels.shape[0] * pixels.shape[1]


def _read_small_jpeg(data: bytes, reader: Reader, side: int) -> tuple[np.ndarray, int, int] | None:
    """Decode a plain JPEG file at a fraction of its size, several times as fast; None: it is not one."""
    try:
        check_whole(data)
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=known_formats()) as image:
            warnings.simplefilter("ignore")
            num_pixels = image.width * image.height
            if image.format != "JPEG" or image.mode not in ("L", "RGB") or num_pixels > reader.max_image_pixels:
                return None
            orientation = read_orientation(image)
            image.draft(image.mode, (side, side))
            image.load()
            pixels = pil_to_array(image, reader.channels, reader.alpha_color, orientation)
            # Finding the bits takes about a quarter of decoding them, whatever the size.
            return pixels, num_pixels, max(pixels.shape[0] * pixels.shape[1], num_pixels // 4)
    except Exception:  # Pillow raises almost any type on damaged bytes; the reader says what is wrong
        return None
