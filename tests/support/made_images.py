"""Images and sources that tests make."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cvtrain.data.images.reader import BadImageError

READERS = ("pillow", "opencv", "skimage", "torchvision")
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(height: int = 61, width: int = 48) -> np.ndarray:
    """Smooth colours with some texture, (height, width, 3) uint8: what JPEG is made for."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9 + y / 17), np.cos(y / 7), np.sin((x + y) / 5)], axis=2)
    return (127 + 100 * waves + noise(height, width) / 16).clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, image_format, **options)
    return file.getvalue()


def orientation_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def write(folder: Path, data: bytes, name: str = "image.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 in integers, (H, W, 3) to (H, W, 1), the naive reference."""
    red, green, blue = (rgb[..., c].astype(np.int64) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)[..., None]


def composite(rgba: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return np.floor(alpha * rgba[..., :3] + (1 - alpha) * np.array(color) + 0.5).astype(np.uint8)


class NoisySource:
    """17 images of several sizes; reading `bad` ones fails. Reading draws from all global generators, as a user's own
    Dataset may."""

    def __init__(self, bad: tuple[int, ...] = (), count: int = 17, draws: bool = False) -> None:
        self.labels = np.arange(count, dtype=np.int64) % 3
        self.bad = bad
        self.draws = draws

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise BadImageError(f"/photos/{index}.jpg", "truncated")
        image = np.random.default_rng(index).integers(0, 200, (5 + index % 4, 8, 3), dtype=np.uint8)
        if self.draws:
            image += np.uint8(random.randrange(10) + np.random.randint(10) + int(torch.randint(10, ())))  # noqa: NPY002
        return image

    def name(self, index: int) -> str:
        return f"{index}.jpg"
