"""Transforms of a whole batch of small images at once, each with its own random numbers: a few operations, no loop.

They use torch's generator of the images' device, as kornia's do, and may be mixed with them in one list.
"""

import torch

_PADDING_MODES = ("reflect", "edge", "constant")


class ShiftCrop:
    """Each image padded on all sides and cut back to its size at a place of its own (He et al. 2016, CIFAR-10).

    Args:
        padding: pixels on each side, so that images move by up to as many each way.
        padding_mode: reflect (without the border pixel again), edge (the border pixel again) or constant (0, black).
    """

    def __init__(self, padding: int, padding_mode: str = "reflect") -> None:
        if padding < 1:
            raise ValueError(f"padding={padding} has to be at least 1")
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode} has to be one of {', '.join(_PADDING_MODES)}")
        self.padding = padding
        self.padding_mode = padding_mode

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        count, device = len(images), images.device
        if self.padding >= min(images.shape[2:]):
            raise ValueError(f"padding={self.padding} has to be smaller than the image")
        offsets = torch.randint(0, 2 * self.padding + 1, (2, count), device=device) - self.padding
        return shift_images(images, offsets[0], offsets[1], self.padding_mode)


class Flip:
    """Each image mirrored left to right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        _check_probability(p)
        self.p = p

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        flipped = torch.rand(len(images), device=images.device) < self.p
        return torch.where(flipped[:, None, None, None], images.flip(3), images)


class Cutout:
    """A square of each image replaced by one value, with probability `p` (DeVries and Taylor 2017).

    Its centre is anywhere in the image, so that at a border less of it is seen.

    Args:
        size: side of the square in pixels.
        value: what stands there, in 0..1.
    """

    def __init__(self, size: int, value: float = 0.5, p: float = 1.0) -> None:
        if size < 1:
            raise ValueError(f"size={size} has to be at least 1")
        _check_probability(p)
        self.size = size
        self.value = value
        self.p = p

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        count, _, height, width = images.shape
        draws = torch.rand(3, count, 1, device=images.device)
        rows = _inside(draws[0], height, self.size) & (draws[2] < self.p)  # (B, H)
        columns = _inside(draws[1], width, self.size)  # (B, W)
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], self.value)


BATCH_OPS: dict[str, type] = {"ShiftCrop": ShiftCrop, "Flip": Flip, "Cutout": Cutout}


def shift_images(images: torch.Tensor, down: torch.Tensor, right: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """Image i without its first down[i] rows and right[i] columns (negative: moved the other way), padded as named.

    One gather for all: pixels are taken where the padded image would have them, so that nothing is padded.

    Args:
        images: (B, C, H, W).
        down, right: (B,) int64, each smaller than the image in magnitude.
    """
    count, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + down[:, None]  # (B, H)
    columns = torch.arange(width, device=device) + right[:, None]  # (B, W)
    batch = torch.arange(count, device=device)[:, None, None]
    taken_rows, taken_columns = _fold(rows, height, padding_mode), _fold(columns, width, padding_mode)
    # Indices around a slice put their own dimensions first: (B, H, W, C), which is channels_last in memory.
    taken = images[batch, :, taken_rows[:, :, None], taken_columns[:, None, :]]
    if padding_mode == "constant":
        outside = (rows != taken_rows)[:, :, None] | (columns != taken_columns)[:, None, :]  # (B, H, W)
        taken = taken.masked_fill(outside[..., None], 0.0)
    taken = taken.permute(0, 3, 1, 2)  # (B, C, H, W)
    return taken.contiguous() if images.is_contiguous() else taken


def _fold(places: torch.Tensor, size: int, padding_mode: str) -> torch.Tensor:
    """Return the source position of the pixel that a padded image has at each of `places`."""
    if padding_mode == "reflect":
        return (size - 1) - ((size - 1) - places.abs()).abs()
    return places.clamp(0, size - 1)


def _inside(centre: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """(B, length) bool: pixels less than `size` after the first of a square around `centre`, (B, 1) in 0..1."""
    first = (centre * length).floor() - size // 2
    places = torch.arange(length, device=centre.device)
    return (places >= first) & (places < first + size)


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"p={p} has to be in 0..1")
