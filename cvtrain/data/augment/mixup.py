"""Mixing the images of a batch with one another: mixup and cutmix, as pure functions."""

from dataclasses import dataclass

import numpy as np
import torch

# Keeps the random numbers of mixing apart from others of the same seed.
_MIX_STREAM = 0x6D6978


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels (B,) int64 as float32 rows (B, K): 1 at the label, 0 elsewhere."""
    rows = torch.zeros(len(labels), num_classes, dtype=torch.float32, device=labels.device)
    return rows.scatter_(1, labels[:, None], 1.0)


def mix_targets(labels: torch.Tensor, *, num_classes: int, weight: float, shift: int) -> torch.Tensor:
    """weight * target of image i + (1 - weight) * target of image i - shift: (B, K) float32, rows sum to 1."""
    rows = one_hot(labels, num_classes)
    return weight * rows + (1 - weight) * rows.roll(shift, 0)


def mixup(
    images: torch.Tensor, labels: torch.Tensor, *, num_classes: int, weight: float, shift: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each image and its target with those of its partner (Zhang et al. 2018, mixup).

    The partner of image i is image i - shift (mod B): batches are shuffled already, and a shift needs no indices on
    the device.

    Args:
        images: (B, C, H, W) float.
        labels: (B,) int64.
        num_classes: K.
        weight: of the image itself, in 0..1.
        shift: 1 to B - 1.

    Returns:
        images (B, C, H, W), targets (B, K) float32.
    """
    mixed = weight * images + (1 - weight) * images.roll(shift, 0)
    return mixed, mix_targets(labels, num_classes=num_classes, weight=weight, shift=shift)


@dataclass(frozen=True)
class Box:
    """Pixels [top, bottom) x [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


def cutmix_box(height: int, width: int, *, weight: float, centre: tuple[float, float]) -> Box:
    """The box that cutmix replaces: share 1 - weight of the area, the image's aspect, cut off at the borders.

    Args:
        height, width: of the image, in pixels.
        weight: share of the image that stays, in 0..1.
        centre: of the box as a share of height and of width, in 0..1 (1 excluded).
    """
    side = float(np.sqrt(1 - weight))
    box_height, box_width = int(height * side), int(width * side)
    row, column = int(centre[0] * height), int(centre[1] * width)
    top, left = row - box_height // 2, column - box_width // 2
    return Box(max(top, 0), min(top + box_height, height), max(left, 0), min(left + box_width, width))


def cutmix(
    images: torch.Tensor, labels: torch.Tensor, *, num_classes: int, box: Box, shift: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a box of its partner into each image (Yun et al. 2019, CutMix); targets are weighed by the area of the box.

    Args:
        images: (B, C, H, W) float.
        labels: (B,) int64.
        num_classes: K.
        box: within the image.
        shift: the partner of image i is image i - shift (mod B).

    Returns:
        images (B, C, H, W), targets (B, K) float32.
    """
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[:, :, rows, columns].roll(shift, 0)
    weight = 1 - box.area / (images.shape[2] * images.shape[3])
    return mixed, mix_targets(labels, num_classes=num_classes, weight=weight, shift=shift)


class BatchMixer:
    """Decides per batch, from its seed alone, whether and how to mix. Draws on the host: no wait for the device.

    Args:
        num_classes: K.
        mixup_alpha, cutmix_alpha: of Beta(alpha, alpha); 0: off. One of them is above 0.
        mix_prob: share of batches that are mixed.
        cutmix_share: with both on, share of the mixed batches that get cutmix.
    """

    def __init__(
        self, *, num_classes: int, mixup_alpha: float, cutmix_alpha: float, mix_prob: float, cutmix_share: float
    ) -> None:
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.mix_prob = mix_prob
        self.cutmix_share = cutmix_share if mixup_alpha > 0 else 1.0
        if cutmix_alpha == 0:
            self.cutmix_share = 0.0

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images and (B, K) float32 targets; in a batch that is not mixed, the images and labels as given.

        A batch of one image has no partner and is never mixed.
        """
        rng = np.random.default_rng((seed, _MIX_STREAM))
        # Always the same random numbers in the same order, so that one setting does not change those of another.
        mixes, cuts = rng.random() < self.mix_prob, rng.random() < self.cutmix_share
        if not mixes or len(images) < 2:
            return images, labels
        shift = int(rng.integers(1, len(images)))
        if not cuts:
            weight = float(rng.beta(self.mixup_alpha, self.mixup_alpha))
            return mixup(images, labels, num_classes=self.num_classes, weight=weight, shift=shift)
        weight = float(rng.beta(self.cutmix_alpha, self.cutmix_alpha))
        centre = (float(rng.random()), float(rng.random()))
        box = cutmix_box(images.shape[2], images.shape[3], weight=weight, centre=centre)
        return cutmix(images, labels, num_classes=self.num_classes, box=box, shift=shift)
