"""The network as it is exported: with its normalisation in front and its probabilities behind."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

# A name of the batch's axis in the exported file.
BATCH = "batch"


class ExportNetwork(nn.Module):
    """Images to probabilities, or normalised images to logits, in one module without a setting.

    With `pixels`: (B, S, S, C) uint8 to probabilities (B, num_classes) float32, softmax(logits / temperature).
    Else: normalised (B, C, S, S) float32 to logits (B, num_classes) float32.

    Args:
        module: normalised (B, C, S, S) to (B, num_classes) logits. It is copied.
        mean, std: per channel, of values in 0..1.
        pixels: take pixels, not normalised images.
        temperature: divides the logits.
        flip: average the logits of each image and of its mirror image.
        dtype: of the module's weights and of what it computes: float32 or float16.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        pixels: bool,
        temperature: float = 1.0,
        flip: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        own = copy.deepcopy(module).cpu().to(dtype).to(memory_format=torch.contiguous_format)
        self.module = own.requires_grad_(False).eval()
        self.pixels = pixels
        self.temperature = temperature
        self.flip = flip
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pixels:
            # (B, S, S, C) to (B, C, S, S)
            images = images.permute(0, 3, 1, 2).float().div(255.0).sub(self.mean).div(self.std)
        images = images.to(self.dtype)
        logits = self.module(images).float()
        if self.flip:
            logits = (logits + self.module(images.flip(3)).float()) / 2
        return torch.softmax(logits / self.temperature, dim=1) if self.pixels else logits


def example_images(network: ExportNetwork, image_size: int) -> torch.Tensor:
    """Return a batch that a network takes. It has two images: an export with one would be fixed to one."""
    channels = network.mean.shape[1]
    if network.pixels:
        return torch.zeros(2, image_size, image_size, channels, dtype=torch.uint8)
    return torch.zeros(2, channels, image_size, image_size)
