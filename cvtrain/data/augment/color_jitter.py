"""`FastColorJitter`: torchvision's ColorJitter without hue by OpenCV, at an eighth of its time.

It stays in the workers, per image: what it costs there is less than the same on float batches on a CPU, and an
augmented image remains a function of (seed, epoch, index) alone.
"""

import numpy as np
import torch

from cvtrain.data.augment.pipeline import Step

_IDENTITY = np.eye(3)
_LUMA = np.array([0.2989, 0.587, 0.114])  # torchvision's
_BRIGHTNESS, _CONTRAST, _SATURATION = 0, 1, 2

Range = tuple[float, float] | None


class FastColorJitter:
    """Brightness, contrast and saturation by random factors in random order.

    Random numbers are those of torchvision's ColorJitter, drawn in the same order. Pixels differ from its own by one of
    255 for each of the three at most, as means and weights are rounded elsewhere; by more with factors far above 1.

    Args:
        brightness, contrast, saturation: smallest and largest factor; None leaves it alone.
    """

    def __init__(self, *, brightness: Range, contrast: Range, saturation: Range) -> None:
        self.ranges = (brightness, contrast, saturation)

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """(3, H, W) uint8 -> (3, H, W) uint8 whose channels are last in memory."""
        order = torch.randperm(4, generator=generator).tolist()  # the fourth is hue
        factors = [
            None if limits is None else torch.empty(1).uniform_(*limits, generator=generator).item()
            for limits in self.ranges
        ]
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        for number in order:
            factor = factors[number] if number < len(factors) else None
            if factor is not None:
                pixels = _ADJUST[number](pixels, factor)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    return _blend(pixels, _IDENTITY * factor, 0.0)


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    # torchvision rounds each grey value down, OpenCV to the nearest: half a level between their means.
    mean = cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] - 0.5
    return _blend(pixels, _IDENTITY * factor, (1 - factor) * mean)


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    # The grey value too is rounded down by torchvision.
    return _blend(pixels, _IDENTITY * factor + (1 - factor) * _LUMA, (factor - 1) * 0.5)


def _blend(pixels: np.ndarray, weights: np.ndarray, shift: float) -> np.ndarray:
    """Each pixel's `weights @ rgb + shift`, rounded down and kept in 0..255."""
    import cv2

    matrix = np.empty((3, 4), np.float32)
    matrix[:, :3], matrix[:, 3] = weights, shift - 0.5  # OpenCV rounds to the nearest
    return cv2.transform(pixels, matrix)  # a third of the time of a look-up in a table


_ADJUST = {_BRIGHTNESS: adjust_brightness, _CONTRAST: adjust_contrast, _SATURATION: adjust_saturation}


def find_colour_jitter(step: Step) -> FastColorJitter | None:
    """Return the fast equivalent of a transform of torchvision's; None if it is another, or changes hue."""
    from torchvision.transforms import v2

    jitter = step.transform
    if type(jitter) is not v2.ColorJitter or jitter.hue is not None:
        return None
    return FastColorJitter(brightness=jitter.brightness, contrast=jitter.contrast, saturation=jitter.saturation)
