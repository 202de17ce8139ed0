"""`CropFlip`: RandomResizedCrop and the flip behind it, to the bit as torchvision makes them, in less time.

These two start almost every list for photos, and on images out of the cache they are all the work. torchvision wraps
the kernel that resizes in layers that took as long as itself; what they compute is repeated here without them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cvtrain.data.augment.pipeline import Step
from cvtrain.data.images.resize import resize_pixels

# Number of boxes that torchvision samples before it takes the centre of the image.
_ATTEMPTS = 10


class CropFlip:
    """A box of random area and aspect, resized to (S, S) with antialiasing, and flipped left to right by chance.

    Args:
        size: S, in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        flip_probability: None: no flip, and no random number drawn for it.
    """

    def __init__(
        self, *, size: int, scale: Sequence[float], ratio: Sequence[float], flip_probability: float | None
    ) -> None:
        self.size = size
        self.scale = (float(scale[0]), float(scale[1]))
        self.ratio = (float(ratio[0]), float(ratio[1]))
        # In float32, as torchvision does it: the last bit decides where a box begins.
        low, high = torch.log(torch.tensor(self.ratio)).tolist()
        self._log_ratio = (low, high)
        self.flip_probability = flip_probability

    @property
    def num_steps(self) -> int:
        """Transforms of the list that this stands for."""
        return 1 if self.flip_probability is None else 2

    def __call__(self, image: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """(H, W, C) uint8 -> (C, S, S) uint8 whose channels are last in memory. `image` may be read-only.

        Random numbers come from `generator`, as many and in the same order as torchvision draws them.
        """
        top, left, height, width = self._draw_box(image.shape[0], image.shape[1], generator)
        # The copy is of the box only, and small beside the resize; the kernel would make it too.
        box = np.array(image[top : top + height, left : left + width], order="C")
        pixels = torch.from_numpy(resize_pixels(box, self.size, self.size)).permute(2, 0, 1)
        flips = self.flip_probability is not None and _uniform(0.0, 1.0, generator) < self.flip_probability
        return pixels.flip(-1) if flips else pixels

    def _draw_box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        for _ in range(_ATTEMPTS):
            area = height * width * _uniform(*self.scale, generator)
            aspect = torch.exp(torch.empty(1).uniform_(*self._log_ratio, generator=generator)).item()
            box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_width <= width and 0 < box_height <= height:
                top = torch.randint(0, height - box_height + 1, (1,), generator=generator).item()
                left = torch.randint(0, width - box_width + 1, (1,), generator=generator).item()
                return int(top), int(left), box_height, box_width
        box_height, box_width = self._largest_box(height, width)
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def _largest_box(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what of the image has an allowed aspect."""
        low, high = min(self.ratio), max(self.ratio)
        if width / height < low:
            return round(width / low), width
        if width / height > high:
            return height, round(height * high)
        return height, width


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def find_crop_flip(steps: Sequence[Step]) -> CropFlip | None:
    """Return the fast equivalent of the first transforms of a list; None if they are others, or set otherwise."""
    from torchvision.transforms import InterpolationMode, v2

    if not steps or type(steps[0].transform) is not v2.RandomResizedCrop:
        return None
    crop: Any = steps[0].transform
    size = list(crop.size)
    if len(set(size)) != 1 or crop.interpolation not in (InterpolationMode.BILINEAR, "bilinear") or not crop.antialias:
        return None
    flip: Any = steps[1].transform if len(steps) > 1 else None
    probability = flip.p if type(flip) is v2.RandomHorizontalFlip else None
    return CropFlip(size=size[0], scale=crop.scale, ratio=crop.ratio, flip_probability=probability)
