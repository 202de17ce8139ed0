"""Decoders of other libraries for the plain files: 8-bit RGB or grey JPEG and PNG without transparency.

Each takes the bytes of a file and returns (H, W) or (H, W, 3) uint8 as stored, EXIF orientation not applied. Each
raises whatever its library raises; the caller then asks Pillow, which is the one judge of what is a bad file.
"""

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import get_worker_info

STDERR = 2


def decode_opencv(data: bytes, image_format: str, mode: str) -> np.ndarray:
    import cv2

    in_rgb = getattr(cv2, "IMREAD_COLOR_RGB", None)  # from 4.11 on
    colour = cv2.IMREAD_COLOR if in_rgb is None else in_rgb
    flags = cv2.IMREAD_GRAYSCALE if mode == "L" else colour
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("OpenCV cannot decode the file")
    return pixels if mode == "L" or in_rgb is not None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def decode_skimage(data: bytes, image_format: str, mode: str) -> np.ndarray:
    from skimage import io as skimage_io

    return skimage_io.imread(io.BytesIO(data))


def decode_torchvision(data: bytes, image_format: str, mode: str) -> np.ndarray:
    import torch
    from torchvision import io as torchvision_io

    # frombuffer warns about memory that cannot be written, which bytes are; the copy is small beside decoding.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        # From 0.29 on torchvision announces that its decoders will go; a reader without them falls to Pillow.
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = torchvision_io.decode_jpeg(encoded)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Decoder:
    """A library's decoder and the formats (Pillow's names) that it is given."""

    decode: Callable[[bytes, str, str], np.ndarray]
    formats: frozenset[str]


# MPO is a JPEG with further pictures behind it, such as a gain map or the second eye; the first one counts. No WebP:
# all use libwebp, Pillow as fast as the others, but its animation decoder finds damage that the simple one lets pass.
DECODERS = {
    "opencv": Decoder(decode_opencv, frozenset({"JPEG", "MPO", "PNG"})),
    "skimage": Decoder(decode_skimage, frozenset({"JPEG", "MPO", "PNG"})),
    # No PNG: torchvision 0.29 crashes the process on a damaged PNG stream, which a worker would not survive.
    "torchvision": Decoder(decode_torchvision, frozenset({"JPEG", "MPO"})),
}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without what libjpeg, libpng and libtiff print about damaged files; 10 us, beside 1 ms to decode a photo.

    They write to the process's stderr itself, which is turned away meanwhile. Another thread could write there too, so
    this is done in data workers, and in a process without other threads.
    """
    if get_worker_info() is None and threading.active_count() > 1:
        yield
        return
    try:
        kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a process without stderr, or with too many files open
        yield
        return
    try:
        os.dup2(nowhere, STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
