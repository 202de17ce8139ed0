"""Source `digits`: scikit-learn's handwritten digits, which need no download."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from cvtrain.config.schema.data import DigitsConfig
from cvtrain.data.images.convert import to_channels
from cvtrain.data.sources.source import ArraySource, Splits
from cvtrain.data.sources.splits import SplitSettings, complete_splits

# Rows of 64 values and a class, in scikit-learn's folder.
_FILE = ("datasets", "data", "digits.csv.gz")
_SHAPE = (1797, 65)


def build_digits(config: DigitsConfig) -> Splits:
    """1,797 images of 8x8, split by `config.val_fraction`.

    The values 0..16 of `sklearn.datasets.load_digits` become 0..255 by value * 255 / 16, rounded to the nearest
    (halves up): 8 -> 128, 16 -> 255.
    """
    values, labels = load_values()
    grey = np.floor(values * (255 / 16) + 0.5).astype(np.uint8)  # (1797, 8, 8)
    train = ArraySource(images=to_channels(grey[..., None], config.channels), labels=labels, prefix="digits")
    return complete_splits(
        {"train": train},
        classes=tuple(str(digit) for digit in range(10)),
        settings=SplitSettings.of(config),
        key="data",
    )


def load_values() -> tuple[np.ndarray, np.ndarray]:
    """Values 0..16, (1797, 8, 8) float64, and classes, (1797,) int64.

    They lie in a file of scikit-learn's, which is read without importing it: that takes seconds.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0], *_FILE)
        if path.is_file():
            table = np.array(
                [line.split(b",") for line in gzip.decompress(path.read_bytes()).split()], dtype=np.float64
            )
            if table.shape == _SHAPE:
                return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # a version that keeps them elsewhere

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)
