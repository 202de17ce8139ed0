"""Source `digits`: scikit-learn's handwritten digits, which need no download."""

import numpy as np

from cvtrain.config.data import DigitsConfig
from cvtrain.data.pixels import to_channels
from cvtrain.data.source import ArraySource, Splits
from cvtrain.data.splits import complete_splits


def build_digits(config: DigitsConfig) -> Splits:
    """1,797 images of 8x8, split by `config.val_fraction`.

    The values 0..16 of `sklearn.datasets.load_digits` become 0..255 by value * 255 / 16, rounded to the nearest
    (halves up): 8 -> 128, 16 -> 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.floor(digits.images * (255 / 16) + 0.5).astype(np.uint8)  # (1797, 8, 8)
    train = ArraySource(
        images=to_channels(grey[..., None], config.channels), labels=digits.target.astype(np.int64), prefix="digits"
    )
    return complete_splits(
        train=train,
        val=None,
        test=None,
        classes=tuple(str(digit) for digit in range(10)),
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        key="data",
    )
