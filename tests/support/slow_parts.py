"""A network and a data set of a user's own that are slow at one place, which the environment names."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def pause(place: str) -> None:
    """Leave a mark and sleep, if SLOW_AT is `place`; with SLOW_ONCE only the first time."""
    if os.environ.get("SLOW_AT") != place:
        return
    mark = Path(os.environ["SLOW_MARK"])
    if "SLOW_ONCE" in os.environ and mark.exists():
        return
    mark.touch()
    time.sleep(float(os.environ["SLOW_SECONDS"]))


class Net(nn.Module):
    """A linear classifier of 8x8 images with dropout."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.any():  # black ones are for the summary of the model
            pause("step" if self.training else "evaluation")
        return self.layers(images)


class Digits(torch.utils.data.Dataset):
    """160 training, 48 val or 32 test images."""

    SPLITS = {"train": slice(0, 160), "val": slice(160, 208), "test": slice(208, 240)}

    def __init__(self, split: str) -> None:
        pause("assembly")
        digits = load_digits()
        self.images = (digits.images[self.SPLITS[split]] * 15).astype(np.uint8)[..., None]  # (N, 8, 8, 1)
        self.targets = digits.target[self.SPLITS[split]].tolist()
        self.split = split

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index % 16 == 5:  # not the first image, which is read once when the run is assembled
            pause({"train": "reading", "test": "report"}.get(self.split, ""))
        return self.images[index], self.targets[index]
