"""A set with the shape of CIFAR-10 and nothing to learn: ten class folders of 32 x 32 PNG files of noise.

python scripts/bench/make_noise.py FOLDER [TRAIN] [TEST]     50,000 and 10,000 images, as CIFAR-10 has
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    root, *counts = sys.argv[1:]
    for split, count in zip(("train", "test"), counts or ("50000", "10000"), strict=True):
        rng = np.random.default_rng(0)
        for kind in range(10):
            (Path(root) / split / str(kind)).mkdir(parents=True, exist_ok=True)
        for number in range(int(count)):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            path = Path(root) / split / str(number % 10) / f"{number:05d}.png"
            Image.fromarray(pixels).save(path, compress_level=0)


if __name__ == "__main__":
    main()
