"""`TrainTransform`: what a worker does to one training image."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import first_line
from cvtrain.config.transform_specs import TRANSFORMS_KEY


@dataclass(frozen=True)
class Step:
    """One transform of a list, with its place in the config."""

    key: str
    transform: Any

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


class Chain(ABC):
    """Steps of one library: (H, W, C) uint8 image and sample seed -> (C, h, w) uint8 tensor."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    @abstractmethod
    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor: ...


class TrainTransform:
    """One training image: optional evaluation resize, then the configured transforms, then a check of the shape.

    Args:
        chain: the transforms.
        resize: the evaluation resize, (H, W, C) uint8 -> (C, S, S) uint8 tensor; None if the chain makes the size.
        image_size: S, the side that the result must have, in pixels.
        channels: C.
    """

    def __init__(
        self,
        *,
        chain: Chain,
        resize: Callable[[np.ndarray], torch.Tensor] | None,
        image_size: int,
        channels: int,
    ) -> None:
        self.chain = chain
        self.resize = resize
        self.shape = (channels, image_size, image_size)

    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        """Augment one image. The same image and seed give the same bits; no global generator is read or changed.

        Args:
            image: (H, W, C) uint8; not changed.
            seed: of this sample in this epoch: derive_seed(seed, epoch, index), any number of 64 bits.

        Returns:
            (C, S, S) uint8, in any memory layout. It may share memory with `image` where no transform changed a pixel.

        Raises:
            ConfigError: a transform cannot deal with this image, or the result is not (C, S, S).
        """
        if self.resize is not None:
            image = self.resize(image).permute(1, 2, 0).numpy()
        result = self.chain(image, seed)
        if tuple(result.shape) != self.shape:
            raise self._wrong_shape(result)
        return result

    def _wrong_shape(self, result: torch.Tensor) -> ConfigError:
        channels, side, _ = self.shape
        names = " -> ".join(step.name for step in self.chain.steps)
        if result.shape[0] != channels:
            made = f"{result.shape[0]} channel{'s' if result.shape[0] > 1 else ''}"
            rule = f"{names} makes {made} where data.channels is {channels}"
            return ConfigError(TRANSFORMS_KEY, rule=rule, remedy="take out the transform that changes the channels")
        rule = f"{names} makes {result.shape[1]} x {result.shape[2]} pixels, not data.image_size={side} squared"
        return ConfigError(
            TRANSFORMS_KEY, rule=rule, remedy="end with RandomCrop or CenterCrop, or start with RandomResizedCrop"
        )


def step_error(step: Step, shape: Sequence[int], error: Exception) -> ConfigError:
    """Return the error of a library's transform that fails on an image of `shape`, (H, W, C)."""
    size = f"{shape[0]} x {shape[1]} pixels and {shape[2]} channel{'s' if shape[2] > 1 else ''}"
    rule = f"fails on an image of {size}: {type(error).__name__}: {first_line(error)}"
    return ConfigError(step.key, rule=rule, remedy="change its arguments, put another in its place, or take it out")
