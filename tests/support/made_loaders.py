"""Loaders over made images, and what tests ask of their worker processes."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch

from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler

SIZE = 6


class RandomCrop:
    """What a torchvision transform does: uses torch's global generator, seeded by the sample's seed."""

    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        flip = bool(torch.rand(()) < 0.5)
        noise = torch.randint(0, 50, (3, SIZE, SIZE), dtype=torch.uint8)
        resized = build_eval_transform(image_size=SIZE, resize="squash", crop_fraction=1.0)(image)
        return (resized.flip(2) if flip else resized) + noise


def make_dataset(source: object, train_transform: object = None, image_size: int = SIZE) -> BatchDataset:
    return BatchDataset(
        source=source,  # type: ignore[arg-type]
        eval_transform=build_eval_transform(image_size=image_size, resize="squash", crop_fraction=1.0),
        train_transform=train_transform,  # type: ignore[arg-type]
        image_size=image_size,
        channels=3,
        seed=11,
    )


def make_loader(source: object, train_transform: object = None, **options: object) -> BatchLoader:
    """Batches of four images."""
    shuffle, image_size = options.pop("shuffle", True), options.pop("image_size", SIZE)
    plan = EpochSampler(len(source), 4, seed=11, shuffle=bool(shuffle))  # type: ignore[arg-type]
    dataset = make_dataset(source, train_transform, image_size)  # type: ignore[arg-type]
    return BatchLoader(dataset=dataset, plan=plan, **options)  # type: ignore[arg-type]


def assert_equal_batches(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.epoch, a.number) == (b.epoch, b.number)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert torch.equal(a.indices, b.indices) and a.bad == b.bad


def children() -> set[int]:
    """Process ids of this process's children."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def wait_until_gone(pids: set[int], seconds: float = 30) -> bool:
    """True as soon as none of the processes is left; False after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() or pid in children() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
