"""`BatchTransform`: what happens to a training batch on its device."""

from collections.abc import Callable

import torch

Augment = Callable[[torch.Tensor, int], torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def keep_images(images: torch.Tensor, seed: int) -> torch.Tensor:
    """No augmentation: the images as they are."""
    return images


def keep_batch(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """No mixing: images and labels as they are."""
    return images, labels


class BatchTransform:
    """Augments, then mixes a training batch, as a pure function of the batch and a seed.

    Args:
        augment: (images, seed) -> images.
        mix: (images, labels, seed) -> (images, targets).
    """

    def __init__(self, *, augment: Augment = keep_images, mix: Mix = keep_batch) -> None:
        self.augment = augment
        self.mix = mix

    @property
    def mixes(self) -> bool:
        """True if targets may be (B, K) floats."""
        return self.mix is not keep_batch

    @property
    def active(self) -> bool:
        """False if every batch comes back as it was given."""
        return self.mixes or self.augment is not keep_images

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform one training batch; no generator outside is read or changed.

        Args:
            images: (B, C, S, S) float in 0..1, not yet normalised; not changed.
            labels: (B,) int64 class ids on the same device.
            seed: of this step.

        Returns:
            images (B, C, S, S); targets: `labels` if the batch was not mixed, else (B, K) float32 whose rows sum to 1.
        """
        return self.mix(self.augment(images, seed), labels, seed)
