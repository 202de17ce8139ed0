"""Heat maps: Grad-CAM, HiResCAM and occlusion."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from cvtrain.explain.spatial_map import SpatialMap, read_map

# Side of the square that hides a part of the image, as a share of the image's side, and its step as a share of its own.
OCCLUSION_SIDE = 1 / 6
OCCLUSION_STEP = 1 / 2


def class_activation_maps(
    module: nn.Module, images: torch.Tensor, targets: torch.Tensor, place: SpatialMap, *, high_resolution: bool = False
) -> torch.Tensor:
    """Return heat maps (B, S, S) float32 in 0..1 by Grad-CAM, or by HiResCAM with `high_resolution`.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weights each channel of the map by the mean of its gradient;
    HiResCAM (Draelos and Carin 2020, arXiv 2011.08891) multiplies map and gradient place by place. Negative values
    count as 0, the largest becomes 1, and bilinear interpolation brings the map to the image's size. All 0: no place
    speaks for the class.

    Args:
        module: normalised images to logits, in eval mode.
        images: (B, C, S, S) normalised.
        targets: (B,) int64 class ids.
        place: from `find_spatial_map`.
    """
    features, gradient = read_map(module, images, targets, place)
    weights = gradient if high_resolution else gradient.mean((2, 3), keepdim=True)
    heat = (weights * features).sum(1, keepdim=True).relu()  # (B, 1, G, G)
    size = tuple(images.shape[-2:])
    return scaled(F.interpolate(scaled(heat), size, mode="bilinear", align_corners=False)[:, 0])


def occlusion_map(score: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Return a heat map (S, S) float32 in 0..1: how much the class loses where a grey square hides the image.

    After Zeiler and Fergus 2014 (arXiv 1311.2901). The square has a sixth of the image's side and the image's mean
    colour; it moves by half its side. A pixel's heat is the mean fall of the probability over the squares that cover
    it; rises count as 0, and the largest becomes 1.

    Args:
        score: (B, C, S, S) uint8 to the class's probability, (B,) float64.
        pixels: (C, S, S) uint8.
        batch_size: images given to `score` at once.
    """
    size = pixels.shape[-1]
    corners = list(occlusion_squares(size))
    mean = mean_colour(pixels)
    heat = torch.zeros(size, size, dtype=torch.float64)
    counts = torch.zeros(size, size, dtype=torch.float64)
    base = score(pixels[None])
    for start in range(0, len(corners), batch_size):
        part = corners[start : start + batch_size]
        hidden = pixels.repeat(len(part), 1, 1, 1)
        for image, (rows, columns) in zip(hidden, part, strict=True):
            image[:, rows, columns] = mean
        falls = (base - score(hidden)).cpu()
        for fall, (rows, columns) in zip(falls, part, strict=True):
            heat[rows, columns] += fall
            counts[rows, columns] += 1
    return scaled((heat / counts).relu().float()[None])[0]


def occlusion_squares(size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of each square; together they cover the image."""
    side = max(1, math.ceil(size * OCCLUSION_SIDE))
    starts = [*range(0, size - side, max(1, int(side * OCCLUSION_STEP))), size - side]
    for top in starts:
        for left in starts:
            yield slice(top, top + side), slice(left, left + side)


def mean_colour(pixels: torch.Tensor) -> torch.Tensor:
    """Return the mean colour (C, 1, 1) uint8 of (C, S, S) uint8."""
    return pixels.double().mean((1, 2), keepdim=True).round().to(torch.uint8)


def scaled(heat: torch.Tensor) -> torch.Tensor:
    """Divide each map of (B, ...) >= 0 by its largest value; a map of zeros stays."""
    top = heat.flatten(1).amax(1).view(-1, *[1] * (heat.dim() - 1))
    return heat / torch.where(top > 0, top, torch.ones_like(top))
