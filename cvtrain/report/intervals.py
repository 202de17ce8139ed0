"""How sure the figures of one evaluation, and the difference between two, are."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cvtrain.metrics import Z

# Resamples of a bootstrap, and the images that all of them together have at most: of large splits there are fewer.
DRAWS, MIN_DRAWS, MAX_DRAWN = 2000, 200, 20_000_000
SEED = 0


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class F1Scores:
    """F1 of each class, and their mean, in 0..1.

    Attributes:
        macro: mean over the classes that occur as true or predicted, as `ClassificationMetrics.compute` has it.
        per_class: of the classes that were asked for.
    """

    macro: Interval
    per_class: dict[int, Interval]


def bootstrap_f1(labels: np.ndarray, preds: np.ndarray, num_classes: int, shown: np.ndarray) -> F1Scores:
    """Return F1 with percentile intervals of a seeded bootstrap over the images (Efron 1979).

    Args:
        labels, preds: (N,) class ids, N at least 1.
        shown: (M,) ids of the classes whose own F1 is wanted; memory grows by 2,000 numbers for each.
    """
    count = len(labels)
    draws = max(MIN_DRAWS, min(DRAWS, MAX_DRAWN // count))
    rng = np.random.default_rng(SEED)
    macros, scores = np.empty(draws), np.empty((draws, len(shown)))
    for draw in range(draws):
        rows = rng.integers(0, count, count)
        macros[draw], f1 = _f1(labels[rows], preds[rows], num_classes)
        scores[draw] = f1[shown]
    macro, f1 = _f1(labels, preds, num_classes)
    ends = np.percentile(scores, (2.5, 97.5), axis=0)
    low, high = np.percentile(macros, (2.5, 97.5))
    return F1Scores(
        Interval(macro, float(low), float(high)),
        {int(k): Interval(float(f1[k]), *map(float, ends[:, place])) for place, k in enumerate(shown)},
    )


def _f1(labels: np.ndarray, preds: np.ndarray, num_classes: int) -> tuple[float, np.ndarray]:
    hits = np.bincount(labels[labels == preds], minlength=num_classes)
    occurrences = np.bincount(labels, minlength=num_classes) + np.bincount(preds, minlength=num_classes)
    f1 = 2 * hits / np.maximum(occurrences, 1)
    return float(f1[occurrences > 0].mean()), f1


def sign_test(won: int, lost: int) -> float:
    """Return P(X >= won) of a fair coin thrown won + lost times; 1 where nothing differs."""
    number = won + lost
    if number == 0:
        return 1.0
    ways = (math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) for k in range(won, number + 1))
    return min(1.0, math.fsum(math.exp(each - number * math.log(2)) for each in ways))


def mcnemar_test(won: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947).

    Args:
        won, lost: images that only the one, only the other network has right.
    """
    return min(1.0, 2 * sign_test(max(won, lost), min(won, lost)))


def difference_interval(won: int, lost: int, count: int) -> Interval:
    """Return the difference of the accuracies of two networks on the same images, in -1..1.

    The interval is that of Agresti and Min 2005 (Statistics in Medicine 24, 729-740): Wald's after half an image is
    added to each of the four cells, so that it has a width where won and lost are 0, too.

    Args:
        won, lost: as for `mcnemar_test`.
        count: images, at least 1.
    """
    total, more, fewer = count + 2, won + 0.5, lost + 0.5
    middle = (more - fewer) / total
    half = Z * math.sqrt((more + fewer) - (more - fewer) ** 2 / total) / total
    return Interval((won - lost) / count, max(-1.0, middle - half), min(1.0, middle + half))


class Answered(NamedTuple):
    """What is left if less sure images get no answer.

    Attributes:
        share: of the images that are answered.
        accuracy: of those.
        threshold: least confidence that is answered.
    """

    share: float
    accuracy: float
    threshold: float


def answered_shares(confidences: np.ndarray, is_right: np.ndarray) -> list[Answered]:
    """Return every way to cut the images by their confidence, from few that are answered to all.

    Args:
        confidences: (N,) in 0..1.
        is_right: (N,) bool.
    """
    order = np.argsort(-confidences, kind="stable")
    sure = confidences[order]
    counts = np.arange(1, len(order) + 1)
    shares, accuracies = counts / len(order), np.cumsum(is_right[order]) / counts
    # Images of the same confidence are all answered, or none.
    cuts = np.flatnonzero(np.append(sure[1:] < sure[:-1], True))
    return [
        Answered(*cut)
        for cut in zip(shares[cuts].tolist(), accuracies[cuts].tolist(), sure[cuts].tolist(), strict=True)
    ]


def answered_at(cuts: list[Answered], precision: float) -> Answered | None:
    """Return the cut that answers most images with at least this accuracy; None if no cut has it."""
    return next((cut for cut in reversed(cuts) if cut.accuracy >= precision), None)
