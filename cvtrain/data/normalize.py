"""Normalization of uint8 batches, on the device."""

import logging

import torch
from torch import nn

from cvtrain.config.schema.data import DataConfig, Normalize

log = logging.getLogger(__name__)


class Normalizer(nn.Module):
    """(B, C, H, W) uint8 -> float32, (value / 255 - mean) / std per channel, in the model's memory layout."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], memory_format: torch.memory_format) -> None:
        super().__init__()
        self.memory_format = memory_format
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def to_float(self, images: torch.Tensor) -> torch.Tensor:
        """Convert uint8 to float32 in 0..1. The layout is changed while a value is still one byte."""
        return images.contiguous(memory_format=self.memory_format).float().div_(255.0)

    def normalize_(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize float32 in 0..1 to the statistics that the model expects, in place."""
        return images.sub_(self.mean).div_(self.std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalize_(self.to_float(images))


class Identity(nn.Module):
    """No-op in place of a `Normalizer`, for batches of features."""

    def to_float(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def normalize_(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def resolve_mean_std(
    data: DataConfig, weights_mean: tuple[float, ...] | None, weights_std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel by `data.normalize`: of the pretrained weights, or of the data.

    One value in the config stands for every channel.
    """
    assert data.normalize is not Normalize.weights or weights_mean is not None, "config/checks lets none through"
    if weights_mean is None or weights_std is None or data.normalize is Normalize.data:
        own = _per_channel(data.mean, data.channels), _per_channel(data.std, data.channels)
        if weights_mean is not None and own != (weights_mean, weights_std):
            log.info(
                "data.mean and data.std are taken: %s, %s instead of the weights' %s, %s",
                *own,
                weights_mean,
                weights_std,
            )
        return own
    return weights_mean, weights_std


def _per_channel(values: list[float], channels: int) -> tuple[float, ...]:
    return tuple(values) * channels if len(values) == 1 else tuple(values)
