"""Time each augmentation preset on one core: a photo of 500 x 375 to 224 x 224. The table of docs/augmentation.md.

OMP_NUM_THREADS=1 python scripts/time_augment.py
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import yaml

from cvtrain.config.composer import conf_dir
from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.data.augment import build_batch_transform, build_train_transform
from cvtrain.data.images.resize import build_eval_transform

SIZE = 224
BATCH = 16


def microseconds(call: Callable[[int], object], seeds: int, repeats: int = 5) -> float:
    """Mean time of a call over the seeds, the best of the repeats."""
    call(0)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for seed in range(seeds):
            call(seed)
        best = min(best, (time.perf_counter() - start) / seeds)
    return best * 1e6


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    coarse = np.random.default_rng(0).integers(0, 256, (25, 33, 3), dtype=np.uint8)
    photo = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    resize = build_eval_transform(image_size=SIZE, resize="resize_crop", crop_fraction=0.875)
    print("| preset | us per image in a worker | us per image on the device (here: the same core) |\n|---|---:|---:|")
    for file in sorted((conf_dir() / "augment").glob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        del values["defaults"]
        values["library"] = AugmentLibrary(values.get("library", "torchvision"))
        augment = AugmentConfig(**values)
        per_image = build_train_transform(augment, image_size=SIZE, channels=3, eval_transform=resize)
        per_batch = build_batch_transform(augment, num_classes=BATCH, image_size=SIZE)
        worker = microseconds(lambda seed: resize(photo) if per_image is None else per_image(photo, seed), 200)  # noqa: B023
        device = microseconds(lambda seed: per_batch(images, labels, seed), 5) / BATCH  # noqa: B023
        print(f"| {file.stem} | {worker:.0f} | {device:.0f} |")


if __name__ == "__main__":
    main()
