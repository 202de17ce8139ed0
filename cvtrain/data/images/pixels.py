"""Channels and memory layout of images that are in memory already."""

import numpy as np
import torch

_CHUNK = 1024  # images converted at once: the sums need 4 bytes per value


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """`images` (N, H, W, 1 or 3) uint8 as (N, H, W, channels) uint8, C-contiguous.

    Grey to RGB repeats the value. RGB to grey is ITU-R 601 luma in Pillow's fixed point (mode L, `Convert.c`):
    (19595 R + 38470 G + 7471 B + 32768) >> 16, so that a set in arrays and the same set in files give equal pixels.
    """
    if images.shape[3] == channels:
        return np.ascontiguousarray(images)
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    grey = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    for first in range(0, len(images), _CHUNK):
        luma = images[first : first + _CHUNK].astype(np.uint32) @ weights  # (n, H, W)
        grey[first : first + _CHUNK, ..., 0] = (luma + 32768) >> 16
    return grey


def place_image(image: torch.Tensor, place: torch.Tensor) -> None:
    """Copy `image` (C, S, S) uint8, in any memory layout, to `place` (S, S, C) contiguous."""
    if image.shape[0] == 1 or not image.is_contiguous():
        place.copy_(image.permute(1, 2, 0))
        return
    import cv2

    # Channel by channel to pixel by pixel: for 224 x 224, OpenCV took 12 us on a busy core, torch 200, NumPy 110.
    cv2.merge(list(image.numpy()), place.numpy())
