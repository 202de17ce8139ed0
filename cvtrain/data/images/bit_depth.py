"""16-bit images whose values use fewer bits, such as the 12 of many cameras, microscopes and X-ray detectors."""

from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

# Files that are looked at before training, spread over the set.
LOOKED_AT = 8
# Values of this many bits are at most a quarter as bright as 16-bit values can be.
FEW_BITS = 14
_PNG_BIT_DEPTH_BYTE = 24
_TIFF_BITS_PER_SAMPLE = 258


def has_16_bit_colours(image: Image.Image, data: bytes) -> bool:
    """Return True for a PNG or TIFF file (`data`, opened as `image`) of opaque 16-bit RGB, which Pillow cuts to 8."""
    if image.mode != "RGB" or image.has_transparency_data:
        return False
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH_BYTE] == 16
    return image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (8,))) == 16


def decode_16_bit_colours(data: bytes) -> np.ndarray:
    """Return (H, W, 3) uint16, RGB as stored, EXIF orientation not applied.

    Raises:
        ValueError: OpenCV cannot decode the file as such.
    """
    import cv2

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("16-bit colours that OpenCV cannot decode")
    return np.ascontiguousarray(pixels[..., ::-1])


def used_bits(files: "SizedFiles") -> int | None:
    """Return how many bits the values of 16-bit images use, in a few of the files; None: not all have 16 bits.

    Damaged files, and those of an unknown kind, count as no 16-bit images.
    """
    step = max(1, len(files) // LOOKED_AT)
    largest = 0
    for index in range(0, min(len(files), step * LOOKED_AT), step):
        try:
            with Image.open(files.path(index), formats=("PNG", "TIFF", "PPM")) as image:
                if image.mode == "I" or image.mode.startswith("I;16"):
                    pixels = np.asarray(image)
                elif has_16_bit_colours(image, data := Path(files.path(index)).read_bytes()):
                    pixels = decode_16_bit_colours(data)
                else:
                    return None
                largest = max(largest, int(pixels.max()))
        except Exception:  # Pillow raises almost any type; the reader will name the file
            return None
    return largest.bit_length() or None


class SizedFiles(Protocol):
    """Files by index."""

    def __len__(self) -> int: ...
    def path(self, index: int) -> str: ...
