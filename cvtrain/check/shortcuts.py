"""Properties that give the class away: brightness, size, shape, file type, camera, folder.

One property alone predicts the class by a table: the values in as many intervals as twice the classes, and in each the
class that is most frequent there, every class weighing the same (the rule 1R of Holte, 1993; with one cut it is a
decision stump). The balanced accuracy on held-out folds is compared with that of permuted labels.
"""

from collections.abc import Iterator

import numpy as np

from cvtrain.check.findings import Finding
from cvtrain.check.measure import CheckedImages, Measurements

NUM_FOLDS, NUM_PERMUTATIONS = 5, 199
# Images that the test looks at, evenly over the set: more change the figure little.
MAX_IMAGES = 5000
MIN_BINS, MAX_BINS = 2, 32
# At most this probability under permuted labels, and at least this share of the way from chance to certainty.
MAX_P, MIN_GAIN = 0.01, 0.3


def shortcut_findings(images: CheckedImages, measured: Measurements) -> Iterator[Finding]:
    """Yield the properties that predict the class much better than chance; the score is the balanced accuracy."""
    rows = np.flatnonzero(measured.readable)
    rows = rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), min(len(rows), MAX_IMAGES)).astype(np.int64))]
    present, labels = np.unique(images.labels[rows], return_inverse=True)
    if len(present) < 2 or np.bincount(labels).min() < 2:
        return
    num_bins = int(np.clip(2 * len(present), MIN_BINS, MAX_BINS))
    for name, bins in _properties(images, measured, rows, num_bins):
        if bins.max() == 0:
            continue
        accuracy, p = permutation_test(bins, labels)
        chance = 1 / len(present)
        if p <= MAX_P and accuracy >= chance + MIN_GAIN * (1 - chance):
            detail = f"{name} alone tells the class with a balanced accuracy of {accuracy:.2f}; chance is {chance:.2f}"
            yield Finding("shortcut", detail, score=accuracy)


def _properties(
    images: CheckedImages, measured: Measurements, rows: np.ndarray, num_bins: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each property's name and the bin (M,) int64 of each image."""
    heights, widths = measured.heights[rows].astype(float), measured.widths[rows].astype(float)
    yield "brightness", into_bins(measured.means[rows], num_bins)
    yield "size in pixels", into_bins(heights * widths, num_bins)
    yield "aspect ratio", into_bins(widths / heights, num_bins)
    if measured.num_bytes.any():
        yield "bytes per pixel", into_bins(measured.num_bytes[rows] / (heights * widths), num_bins)
    yield "file type", np.unique(measured.formats[rows], return_inverse=True)[1]
    yield "camera (EXIF)", np.unique(measured.cameras[rows], return_inverse=True)[1]


def into_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """(N,) int64: the interval of each value, between quantiles of the set."""
    edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def permutation_test(bins: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the balanced accuracy of the table on held-out folds, and its p-value under permuted labels.

    Args:
        bins: (N,) int64, values of the property.
        labels: (N,) int64 below K, each class at least once.
    """
    rng = np.random.default_rng(seed)
    bins = np.unique(bins, return_inverse=True)[1]
    folds = np.empty(len(labels), np.int64)
    shuffled = rng.permutation(len(labels))
    folds[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % NUM_FOLDS
    accuracy = _balanced_accuracy(bins, labels, folds)
    as_good = sum(_balanced_accuracy(bins, rng.permutation(labels), folds) >= accuracy for _ in range(NUM_PERMUTATIONS))
    return accuracy, (1 + as_good) / (1 + NUM_PERMUTATIONS)


def _balanced_accuracy(bins: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    num_bins, num_classes = int(bins.max()) + 1, int(labels.max()) + 1
    cells = (folds * num_bins + bins) * num_classes + labels
    counts = np.bincount(cells, minlength=NUM_FOLDS * num_bins * num_classes)
    counts = counts.reshape(NUM_FOLDS, num_bins, num_classes)  # images by fold, bin and class
    sizes = counts.sum(axis=(0, 1))
    weighted = (counts.sum(axis=0) - counts) / sizes  # of the other folds, each class weighing the same
    chosen = weighted.argmax(axis=2)  # (folds, bins)
    correct = np.take_along_axis(counts, chosen[:, :, None], axis=2)[:, :, 0]
    hits = np.bincount(chosen.ravel(), weights=correct.ravel(), minlength=num_classes)
    return float((hits / sizes).mean())
