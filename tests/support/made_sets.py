"""Sets of pictures with something in them, for tests that look for copies and oddities."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cvtrain.check.measure import CheckedImages
from cvtrain.data.images.reader import build_reader
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource, Splits


def picture(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """Coarse and fine patches of colour, different for each seed."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(rng.normal(0, 1, (cells, cells, 3)), (width, height), interpolation=cv2.INTER_CUBIC) * strength
        for cells, strength in ((4, 50), (9, 30), (20, 15))
    ]
    return Image.fromarray((sum(layers) + 128).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def checked(root: Path, parts: dict[str, dict[str, int]], classes: tuple[str, ...]) -> tuple[CheckedImages, Splits]:
    """The images of splits given as {split: {path: class id}}."""
    reader = build_reader(library="opencv")
    sources = {
        split: FileSource(
            root=str(root),
            paths=PathTable.from_strings(list(paths)),
            labels=np.array(list(paths.values()), np.int64),
            reader=reader,
        )
        for split, paths in parts.items()
    }
    splits = Splits(sources["train"], sources["val"], sources.get("test"), classes)
    return CheckedImages(splits), splits
