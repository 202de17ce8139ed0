"""A small set of photos, and a run on it that takes a second."""

from pathlib import Path

import numpy as np
from PIL import Image

OPTIONS = (
    "data=custom",
    "data.image_size=16",
    "data.batch_size=4",
    "data.num_workers=0",
    "model=small_convnet",
    "trainer.epochs=1",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "plots=false",
    "augment=none",
)


def write_photos(root: Path) -> Path:
    """40 photos of two classes, of different sizes; 8 of them are val."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("ant", "bee")):
        (root / name).mkdir()
        for index in range(20):
            pixels = rng.integers(0, 156, (20 + index, 30, 3), dtype=np.uint8) + np.uint8(100 * number)
            Image.fromarray(pixels).save(root / name / f"{index}.jpg")
    return root
