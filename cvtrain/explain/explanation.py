"""`Explanation`: a heat map over the image that a network saw, and what it is worth."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from cvtrain.explain.deletion import Deletion, measure_deletion
from cvtrain.explain.methods import class_activation_maps, occlusion_map
from cvtrain.explain.spatial_map import SpatialMap, find_spatial_map
from cvtrain.models.dry_run import evaluation_mode

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

METHODS = ("gradcam", "hirescam", "occlusion")
# Images whose maps `heat_maps` computes at once.
_MAPS_AT_ONCE = 8
# A smaller image is enlarged in pictures, its pixels as squares.
MIN_SIDE = 192


@dataclass(frozen=True)
class Explanation:
    """Where a network looked in one image, for one class.

    Attributes:
        heat: (S, S) float32 in 0..1, aligned to `pixels`; all 0: no place speaks for the class.
        pixels: (S, S, C) uint8, the square image that the network saw, after the resize and crop of the run.
        label: the class that is explained.
        prob: its probability in the whole image, 0..1.
        method: gradcam, hirescam or occlusion.
        layer: name of the part of the network whose output was taken; empty for occlusion.
        deletion: what the hottest pixels are worth; None for a map that is the same everywhere.
    """

    heat: np.ndarray
    pixels: np.ndarray
    label: str
    prob: float
    method: str
    layer: str
    deletion: Deletion | None

    @property
    def is_meaningful(self) -> bool:
        """True if the class loses more without the hottest pixels than without as many elsewhere."""
        return self.deletion is not None and self.deletion.is_meaningful

    def overlay(self, alpha: float = 0.5) -> "PIL.Image.Image":
        """Return `pixels` under the heat map as an RGB picture, at least 192 pixels wide.

        Args:
            alpha: opacity of the hottest place, 0..1.
        """
        from PIL import Image

        picture = overlay_heat(self.pixels, self.heat, alpha)
        times = -(-MIN_SIDE // len(picture))
        return Image.fromarray(picture.repeat(times, 0).repeat(times, 1))

    def __repr__(self) -> str:
        worth = "no deletion score" if self.deletion is None else f"deletion score {self.deletion.score:+.3f}"
        side = len(self.heat)
        return f"Explanation({self.label!r} {self.prob:.3f}, {self.method}, {side} x {side}, {worth})"


def overlay_heat(pixels: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Return (S, S, 3) uint8: an image in grey under a heat map, yellow to red, whose opacity grows with its heat.

    Args:
        pixels: (S, S, C) uint8, C = 1 or 3.
        heat: (S, S) in 0..1.
        alpha: opacity of the hottest place, 0..1.
    """
    import matplotlib

    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be 0..1")
    colors = matplotlib.colormaps["autumn_r"](heat)[:, :, :3] * 255
    grey = pixels.astype(np.float64).mean(2, keepdims=True)
    # A heat of 0 leaves the photo alone; from a third on, the colour has its full opacity.
    opacity = alpha * np.minimum(1.0, 3.0 * heat[:, :, None])
    return ((1 - opacity) * grey + opacity * colors).round().astype(np.uint8)


def heat_maps(module: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray | None:
    """Return Grad-CAM's heat maps (B, S, S) float32 of several images; None: the network gives no map with places.

    Args:
        module: normalised images to logits; in eval mode within, and left as it was.
        images: (B, C, S, S) normalised.
        targets: (B,) int64 class ids.
    """
    with evaluation_mode(module):
        place = find_spatial_map(module, images[:1])
        if place is None:
            return None
        parts = zip(images.split(_MAPS_AT_ONCE), targets.split(_MAPS_AT_ONCE), strict=True)
        heat = torch.cat([class_activation_maps(module, *part, place) for part in parts])
    return heat.cpu().numpy()


class Explainer:
    """Explains single images of one network, whose spatial map is looked for once.

    Args:
        module: normalised (B, C, S, S) to logits, in eval mode.
        normalize: (B, C, S, S) uint8 to normalised float32 on the module's device.
        probs: (B, C, S, S) uint8 to probabilities (B, num_classes) float64.
        batch_size: images computed at once.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        probs: Callable[[torch.Tensor], torch.Tensor],
        batch_size: int,
    ) -> None:
        self.module = module
        self.normalize = normalize
        self.probs = probs
        self.batch_size = batch_size
        self._place: SpatialMap | None = None
        self._has_warned = False

    def explain(self, pixels: torch.Tensor, classes: tuple[str, ...], target: int | None, method: str) -> Explanation:
        """Return the explanation of (C, S, S) uint8 `pixels` for class id `target`; None: the most probable class."""
        probs = self.probs(pixels[None])[0]
        label = int(probs.argmax()) if target is None else target

        def score(images: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.probs(part)[:, label] for part in images.split(self.batch_size)])

        place = None if method == "occlusion" else self.find_place(pixels)
        if place is None:
            method = "occlusion"
            heat = occlusion_map(score, pixels, self.batch_size)
        else:
            images, targets = self.normalize(pixels[None]), torch.tensor([label])
            heat = class_activation_maps(
                self.module, images, targets.to(images.device), place, high_resolution=method == "hirescam"
            )[0].cpu()
        return Explanation(
            heat=heat.numpy(),
            pixels=pixels.permute(1, 2, 0).cpu().numpy(),
            label=classes[label],
            prob=float(probs[label]),
            method=method,
            layer="" if place is None else place.name,
            deletion=measure_deletion(score, pixels, heat),
        )

    def find_place(self, pixels: torch.Tensor) -> SpatialMap | None:
        """Return the spatial map that Grad-CAM reads; None: there is none, which the log says once."""
        self._place = self._place or find_spatial_map(self.module, self.normalize(pixels[None]))
        if self._place is None and not self._has_warned:
            self._has_warned = True
            log.warning("no part of the network gives a map with places: occlusion takes the place of Grad-CAM")
        return self._place
