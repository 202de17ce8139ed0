"""Decoders of other libraries for the plain files: 8-bit RGB or grey JPEG, PNG and WebP without transparency.

Each takes the bytes of a file and returns (H, W) or (H, W, 3) uint8 as stored, EXIF orientation not applied. Each
raises whatever its library raises; the caller then asks Pillow, which is the one judge of what is a bad file.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def decode_opencv(data: bytes, image_format: str, mode: str) -> np.ndarray:
    import cv2

    flags = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("OpenCV cannot decode the file")
    return pixels if mode == "L" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def decode_skimage(data: bytes, image_format: str, mode: str) -> np.ndarray:
    from skimage import io as skimage_io

    return skimage_io.imread(io.BytesIO(data))


def decode_torchvision(data: bytes, image_format: str, mode: str) -> np.ndarray:
    import torch
    from torchvision import io as torchvision_io

    decode = torchvision_io.decode_webp if image_format == "WEBP" else torchvision_io.decode_jpeg
    # frombuffer warns about memory that cannot be written, which bytes are; the copy is small beside decoding.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        # From 0.29 on torchvision announces that its decoders will go; a reader without them falls to Pillow.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode(encoded)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Decoder:
    """A library's decoder and the formats (Pillow's names) that it is given."""

    decode: Callable[[bytes, str, str], np.ndarray]
    formats: frozenset[str]


# MPO is a JPEG with further pictures behind it, such as a gain map or the second eye; the first one counts.
DECODERS = {
    "opencv": Decoder(decode_opencv, frozenset({"JPEG", "MPO", "PNG", "WEBP"})),
    "skimage": Decoder(decode_skimage, frozenset({"JPEG", "MPO", "PNG", "WEBP"})),
    # No PNG: torchvision 0.29 crashes the process on a damaged PNG stream, which a worker would not survive.
    "torchvision": Decoder(decode_torchvision, frozenset({"JPEG", "MPO", "WEBP"})),
}
