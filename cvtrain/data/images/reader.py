"""Readers: from a file to (H, W, C) uint8, the same pixels whichever library decodes.

Pillow reads the header of every file. A plain file (8-bit RGB or grey JPEG or PNG, no transparency, not animated) goes
to the chosen library; all others go through Pillow under the rule of `pixel_rule`.
"""

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from cvtrain.data.images.bit_depth import decode_16_bit_colours, has_16_bit_colours
from cvtrain.data.images.convert import WHITE, high_bits, image_to_array, pil_to_array, read_orientation
from cvtrain.data.images.decoders import DECODERS, Decoder, quiet_libraries
from cvtrain.data.images.errors import BadImageError, ImageError, describe_error
from cvtrain.data.images.integrity import check_whole, describe_unknown, png_chunks, read_bytes
from cvtrain.data.loader.timing import stage

__all__ = ["BadImageError", "Reader", "build_reader", "image_to_array"]

log = logging.getLogger(__name__)

# Raster formats only: Pillow would hand an EPS file to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")

# A file may have as many bytes as an uncompressed image with alpha of data.max_image_pixels, and 64 MiB besides.
BYTES_PER_PIXEL = 4
SPARE_BYTES = 64 << 20

_BIT_DEPTH_BYTE = 24  # of a PNG file, within IHDR

# Chunks with which a PNG may go to another decoder than Pillow. Others may hold an orientation, a bomb in compressed
# text, or a profile that libpng complains of.
PNG_BEFORE_PIXELS = frozenset((b"IHDR", b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"tEXt"))
PNG_AFTER_PIXELS = frozenset((b"IDAT", b"IEND", b"tIME", b"tEXt"))


class Reader:
    """Decodes image files. Can be pickled; keeps no state between files.

    Args:
        library: pillow, opencv, skimage or torchvision.
        channels: 3 for RGB, 1 for grey.
        alpha_color: RGB colour behind transparent pixels, 0..255.
        max_image_pixels: files whose header promises more pixels are bad.
        bit_depth: bits that 16-bit values use, 8..16.
    """

    def __init__(
        self,
        *,
        library: str,
        channels: int,
        alpha_color: tuple[int, ...],
        max_image_pixels: int,
        bit_depth: int = 16,
    ) -> None:
        self.library = library
        self.channels = channels
        self.alpha_color = alpha_color
        self.max_image_pixels = max_image_pixels
        self.bit_depth = bit_depth

    def __call__(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The image in file `path`, (H, W, channels) uint8, upright.

        Raises:
            BadImageError: the file is missing, unreadable, no image, incomplete, too large or of unknown range.
            TooManyFilesError: no further file can be opened.
        """
        return self.decode(self.read(path), path)

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """The bytes of file `path`; raises as `__call__`, but for what decoding finds."""
        with stage("read"):
            return read_bytes(path, SPARE_BYTES + BYTES_PER_PIXEL * self.max_image_pixels)

    def decode(self, data: bytes, path: str | os.PathLike[str]) -> np.ndarray:
        """The image in `data`, the bytes of a file; `path` is only named in errors. See `__call__`."""
        try:
            check_whole(data)
            with quiet_libraries(), _quiet_pillow(), Image.open(io.BytesIO(data), formats=known_formats()) as image:
                self._check_size(image)
                decoder = DECODERS.get(self.library)
                pixels = None if decoder is None else _decode_plain(decoder, data, image)
                if pixels is None and self.bit_depth < 16 and has_16_bit_colours(image, data):
                    pixels = decode_16_bit_colours(data)
                if pixels is None:
                    return image_to_array(image, self.channels, self.alpha_color, self.bit_depth)
                return self._turn(pixels, read_orientation(image))
        except UnidentifiedImageError:
            raise BadImageError(path, describe_unknown(data)) from None
        except Exception as error:  # Decoders raise almost any type on damaged bytes.
            raise BadImageError(path, describe_error(error)) from error

    def _check_size(self, image: Image.Image) -> None:
        if image.width * image.height > self.max_image_pixels:
            raise ImageError(
                f"{image.width} x {image.height} pixels are more than data.max_image_pixels={self.max_image_pixels}"
            )
        Image.MAX_IMAGE_PIXELS = self.max_image_pixels  # for tiles and frames; _quiet_pillow puts the old one back

    def _turn(self, pixels: np.ndarray, orientation: int) -> np.ndarray:
        """Stored pixels (H, W) or (H, W, 3), upright and with the channels of this reader."""
        if pixels.dtype == np.uint16:
            pixels = high_bits(pixels, self.bit_depth)
        if orientation == 1:
            return image_to_array(pixels, self.channels, self.alpha_color)
        return pil_to_array(Image.fromarray(pixels), self.channels, self.alpha_color, orientation)


def build_reader(
    *,
    library: str = "pillow",
    channels: int = 3,
    alpha_color: tuple[int, ...] = WHITE,
    max_image_pixels: int = 178_956_970,
    bit_depth: int = 16,
) -> Reader:
    """A reader by library name: from a path to (H, W, channels) uint8. See `Reader`.

    Raises:
        ValueError: an unknown library.
    """
    if library != "pillow" and library not in DECODERS:
        raise ValueError(f"reader {library!r}: must be one of pillow, {', '.join(DECODERS)}")
    if library in DECODERS and not _works(DECODERS[library]):
        log.warning("this installation of %s decodes no JPEG files: Pillow reads all files instead", library)
        library = "pillow"
    return Reader(
        library=library,
        channels=channels,
        alpha_color=tuple(alpha_color),
        max_image_pixels=max_image_pixels,
        bit_depth=bit_depth,
    )


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _works(decoder: Decoder) -> bool:
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "JPEG")
    try:
        return decoder.decode(encoded.getvalue(), "JPEG", "RGB").shape == (8, 8, 3)
    except Exception:  # Whatever keeps a library from decoding, Pillow can replace it.
        return False


def _decode_plain(decoder: Decoder, data: bytes, image: Image.Image) -> np.ndarray | None:
    """The stored pixels, (H, W) or (H, W, 3) uint8, by another library; None if Pillow has to decode."""
    if image.format not in decoder.formats or not _is_plain(data, image):
        return None
    try:
        pixels = decoder.decode(data, image.format, image.mode)
    except Exception:  # Pillow judges whether the file is bad, so that all readers agree.
        return None
    shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
    # Grey may come as (H, W, 1). Whatever a library does not return as stored is Pillow's.
    if pixels.dtype != np.uint8 or pixels.size != np.prod(shape) or pixels.shape[:2] != shape[:2]:
        return None
    return pixels.reshape(shape)


def _is_plain(data: bytes, image: Image.Image) -> bool:
    """8-bit RGB or grey, opaque, one frame; of PNG also nothing but picture and plain properties."""
    if image.mode not in ("RGB", "L") or image.has_transparency_data or getattr(image, "is_animated", False):
        # Pillow counts the pictures behind the first one of an MPO file as frames.
        return image.format == "MPO" and image.mode in ("RGB", "L")
    if image.format != "PNG":
        return True
    # Pillow takes up to 64 MiB of text behind the pixels.
    return data[_BIT_DEPTH_BYTE] == 8 and len(data) <= SPARE_BYTES and _has_plain_chunks(data)


def _has_plain_chunks(data: bytes) -> bool:
    """True for a PNG that Pillow has read up to the pixels, and behind which nothing comes that it would look at."""
    allowed = PNG_BEFORE_PIXELS
    for kind, _, _ in png_chunks(data):
        if kind not in allowed:
            return False
        if kind == b"IDAT":
            allowed = PNG_AFTER_PIXELS
    return True


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings and its own limit on pixels, which is global and here checked per reader."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
