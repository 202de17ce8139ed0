"""What every library's transforms must satisfy: an image and a seed give the same pixels, whatever came before."""

import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch


def photo(height: int = 45, width: int = 40, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def get_rng_state() -> tuple[Any, ...]:
    """Of the generators that everybody shares."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def check_function_of_the_seed(
    transform: Callable[[np.ndarray, int], torch.Tensor], *, channels: int, side: int
) -> None:
    """Four images come out the same in any order, in uint8 at the right size; nothing that was given is changed."""
    images = [photo(channels=channels, seed=seed) for seed in range(4)]
    given = [image.copy() for image in images]
    states = get_rng_state()
    forwards = [transform(image, seed) for seed, image in enumerate(images)]
    assert get_rng_state() == states
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is what must not matter)
    torch.manual_seed(1)
    cv2.setRNGSeed(1)
    backwards = [transform(image, seed) for seed, image in reversed(list(enumerate(images)))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert first.shape == (channels, side, side)
        assert first.dtype == torch.uint8
        assert torch.equal(first, second)
    assert all(np.array_equal(image, copy) for image, copy in zip(images, given, strict=True))
