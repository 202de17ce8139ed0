"""What a report says of one run's predictions, as numbers."""

import math
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cvtrain.metrics import count_confusions, wilson_interval
from cvtrain.report.intervals import (
    SEED,
    Answered,
    F1Scores,
    Interval,
    answered_at,
    answered_shares,
    bootstrap_f1,
)
from cvtrain.report.pictures import Pictures
from cvtrain.report.run_results import RunResults

MAX_CLASSES = 60
MAX_PAIRS, PAIR_IMAGES, MAX_MISTAKES = 8, 4, 24
# Images whose brightness and size are measured.
MAX_MEASURED = 1000
_MAX_FOLDERS = 12
PRECISIONS = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused.

    Attributes:
        rows: the most confident of these mistakes.
    """

    true: int
    pred: int
    count: int
    rows: list[int]


@dataclass(frozen=True)
class Slice:
    """A part of the images, with the share of it that is right."""

    name: str
    count: int
    accuracy: Interval


@dataclass(frozen=True)
class RunFacts:
    """Figures of one split.

    Attributes:
        hits, support, predicted: (K,) images of each class that are right; that have it; that are taken for it.
        classes: ids that are shown, the lowest F1 first.
        cuts: accuracy by the share of images that are answered.
        answers: of these, by precision, those that a user may want.
    """

    accuracy: Interval
    f1: F1Scores
    hits: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    classes: list[int]
    pairs: list[Pair]
    num_pairs: int
    mistakes: list[int]
    cuts: list[Answered]
    answers: dict[float, Answered | None]

    @property
    def rows_with_pictures(self) -> list[int]:
        """Rows of the images that a page shows."""
        return [*self.mistakes, *(row for pair in self.pairs for row in pair.rows)]


def share_with_interval(num_right: int, count: int) -> Interval:
    """Return a share of `count` images, at least 1, with Wilson's interval."""
    return Interval(num_right / count, *wilson_interval(num_right, count))


def compute_facts(results: RunResults) -> RunFacts:
    """Return the figures of a run's predictions; memory grows with images and classes, not with their squares."""
    labels, preds, is_right = results.labels, results.preds, results.is_right
    num_classes = len(results.classes)
    hits = np.bincount(labels[is_right], minlength=num_classes)
    support, predicted = (np.bincount(ids, minlength=num_classes) for ids in (labels, preds))
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    occurring = np.flatnonzero(support + predicted)
    classes = occurring[np.lexsort((-support[occurring], f1[occurring]))][:MAX_CLASSES]
    wrong = np.flatnonzero(~is_right)
    wrong = wrong[np.argsort(-results.confidences[wrong], kind="stable")]
    pairs, num_pairs = _worst_pairs(labels, preds, wrong)
    cuts = answered_shares(results.confidences, is_right)
    return RunFacts(
        accuracy=share_with_interval(int(is_right.sum()), len(labels)),
        f1=bootstrap_f1(labels, preds, num_classes, classes),
        hits=hits,
        support=support,
        predicted=predicted,
        classes=classes.tolist(),
        pairs=pairs,
        num_pairs=num_pairs,
        mistakes=wrong[:MAX_MISTAKES].tolist(),
        cuts=cuts,
        answers={precision: answered_at(cuts, precision) for precision in PRECISIONS},
    )


def _worst_pairs(labels: np.ndarray, preds: np.ndarray, wrong: np.ndarray) -> tuple[list[Pair], int]:
    """Return the pairs that are confused most often, and how many there are; `wrong` is sorted by confidence."""
    if not len(wrong):
        return [], 0
    true, predicted, counts = count_confusions(labels[wrong], preds[wrong])
    pairs = []
    for place in np.argsort(-counts, kind="stable")[:MAX_PAIRS].tolist():
        is_pair = (labels[wrong] == true[place]) & (preds[wrong] == predicted[place])
        rows = wrong[is_pair][:PAIR_IMAGES].tolist()
        pairs.append(Pair(int(true[place]), int(predicted[place]), int(counts[place]), rows))
    return pairs, len(counts)


def measured_rows(results: RunResults) -> list[int]:
    """Return the rows of the images that are measured, in an order in which every beginning is a fair sample."""
    return np.random.default_rng(SEED).permutation(len(results.paths))[:MAX_MEASURED].tolist()


def slice_by_properties(results: RunResults, pictures: Pictures) -> tuple[dict[str, list[Slice]], int]:
    """Return the accuracy by brightness and size, in quarters of the measured images, and the number of these."""
    rows = {results.paths[row]: row for row in measured_rows(results)}
    measured = list(pictures.measure(rows))
    if not measured:
        return {}, 0
    is_right = results.is_right[[rows[name] for name, _ in measured]]
    brightness = np.array([each.brightness for _, each in measured])
    megapixels = np.array([each.num_pixels for _, each in measured]) / 1e6
    found = {
        "brightness (mean grey value, 0 to 255)": _quarters(brightness, is_right, ("darkest", "lightest"), 0),
        "size (megapixels)": _quarters(megapixels, is_right, ("smallest", "largest"), 3),
    }
    return {name: slices for name, slices in found.items() if slices}, len(measured)


def _quarters(values: np.ndarray, is_right: np.ndarray, ends: tuple[str, str], digits: int) -> list[Slice]:
    """Return the accuracy in each quarter of the values; nothing where they are too few or too equal for that."""
    edges = np.quantile(values, (0.25, 0.5, 0.75))
    quarter = np.searchsorted(edges, values, side="left")
    if len(values) < 20 or len(np.unique(quarter)) < 4:
        return []
    names = (f"{ends[0]} quarter", "second", "third", f"{ends[1]} quarter")
    slices = []
    for number, name in enumerate(names):
        inside = quarter == number
        low, high = values[inside].min(), values[inside].max()
        accuracy = share_with_interval(int(is_right[inside].sum()), int(inside.sum()))
        slices.append(Slice(f"{name}: {low:.{digits}f} to {high:.{digits}f}", int(inside.sum()), accuracy))
    return slices


def slice_by_folder(results: RunResults) -> list[Slice]:
    """Return the accuracy in each of the largest folders, class folders aside; nothing if there are no such folders."""
    names = {class_name: number for number, class_name in enumerate(results.classes)}
    counts: dict[str, list[int]] = {}
    for path, label, right in zip(results.paths, results.labels.tolist(), results.is_right.tolist(), strict=True):
        parts = [part for part in PurePosixPath(path).parts[:-1] if names.get(part) != label]
        count = counts.setdefault("/".join(parts), [0, 0])
        count[0] += 1
        count[1] += right
    # Folders with an image each, or all images in one, say nothing.
    if not 2 <= len(counts) <= math.isqrt(len(results.paths)):
        return []
    largest = sorted(counts.items(), key=lambda item: -item[1][0])[:_MAX_FOLDERS]
    return [Slice(name or ".", count, share_with_interval(right, count)) for name, (count, right) in largest]
