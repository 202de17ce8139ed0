"""What fits into the time that is left: image size and epochs, by measured speeds."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cvtrain.data.images.errors import BadImageError
from cvtrain.data.sources.source import ImageSource

# What starting and ending a run takes besides passes over images, in seconds, before one has shown it.
RUN_SECONDS = 4.0
# Evaluations that end a run that fine-tunes: averages of the start and the end.
LAST_EVALUATIONS = 3
# Fine-tuning for fewer epochs than this is not worth larger images.
FEW_EPOCHS = 2
# Convolutional networks shrink what they see by 32.
SIZE_STEP, MIN_SIZE = 32, 96
SAMPLED_IMAGES = 32


@dataclass(frozen=True)
class Pace:
    """Seconds per image.

    Attributes:
        read: from the file to pixels.
        forward: through the network.
        step: of a training step, beyond its forward pass.
    """

    read: float
    forward: float
    step: float

    def at_size(self, size: int, measured_at: int) -> "Pace":
        """Return the pace at another image size: what a network computes grows with the pixels."""
        factor = (size / measured_at) ** 2
        return Pace(self.read, factor * self.forward, factor * self.step)

    def frozen_seconds(self, num_train: int, num_val: int) -> float:
        """Return the seconds of the features of a set and one evaluation."""
        return (num_train + num_val) * (self.read + self.forward)

    def epoch_seconds(self, num_train: int, num_val: int) -> float:
        """Return the seconds of an epoch and its evaluation."""
        return self.frozen_seconds(num_train, num_val) + num_train * self.step

    def closing_seconds(self, num_val: int) -> float:
        """Return the seconds of the evaluations that end a run."""
        return LAST_EVALUATIONS * self.frozen_seconds(0, num_val)


def choose_image_size(pace: Pace, *, native: int, short_side: int, num_train: int, num_val: int, seconds: float) -> int:
    """Return the largest size at which the head's run and a few epochs fit into `seconds`; `native` if none does.

    Sizes are `native` less multiples of 32, and no smaller than the images themselves: larger than those, a network
    sees the same more slowly, and only a little better.

    Args:
        pace: at `native`.
        short_side: of the images, in pixels.
    """
    smallest = max(MIN_SIZE, SIZE_STEP * math.ceil(short_side / SIZE_STEP))
    for size in range(native, smallest - 1, -SIZE_STEP):
        at_size = pace.at_size(size, native)
        needed = (
            2 * (RUN_SECONDS + at_size.frozen_seconds(num_train, num_val))
            + FEW_EPOCHS * at_size.epoch_seconds(num_train, num_val)
            + at_size.closing_seconds(num_val)
        )
        if needed <= seconds:
            return size
    return native


def sample_images(source: ImageSource, *, now: Callable[[], float] = time.perf_counter) -> tuple[int, float]:
    """Read up to 32 images that lie evenly over `source`; return their median short side and the seconds per image."""
    sides = []
    began = now()
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLED_IMAGES).astype(int)):
        try:
            sides.append(min(source.read(int(index)).shape[:2]))
        except BadImageError:
            continue
    return (int(np.median(sides)), (now() - began) / len(sides)) if sides else (0, 0.0)
