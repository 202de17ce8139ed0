"""Intervals and tests, by closed forms, enumeration and other libraries."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from cvtrain.report import intervals
from cvtrain.report.intervals import (
    answered_at,
    answered_shares,
    bootstrap_f1,
    difference_interval,
    mcnemar_test,
    sign_test,
)


def guesses(count, num_classes, accuracy, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, count)
    return labels, np.where(rng.random(count) < accuracy, labels, rng.integers(0, num_classes, count))


def test_f1_is_that_of_scikit_learn_and_its_interval_that_of_a_plain_bootstrap(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 40)
    monkeypatch.setattr(intervals, "MIN_DRAWS", 40)
    labels, preds = guesses(120, 4, 0.7)
    found = bootstrap_f1(labels, preds, 6, np.array([3, 0]))  # classes 4 and 5 do not occur
    assert found.macro.value == pytest.approx(f1_score(labels, preds, average="macro"), abs=1e-12)
    each = f1_score(labels, preds, average=None)
    assert {k: scores.value for k, scores in found.per_class.items()} == pytest.approx({3: each[3], 0: each[0]})
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 120, 120) for _ in range(40)]
    macros = [f1_score(labels[rows], preds[rows], average="macro") for rows in draws]
    assert found.macro[1:] == pytest.approx(np.percentile(macros, (2.5, 97.5)), abs=1e-12)
    threes = [f1_score(labels[rows], preds[rows], labels=[3], average="macro") for rows in draws]
    assert found.per_class[3][1:] == pytest.approx(np.percentile(threes, (2.5, 97.5)), abs=1e-12)


def test_equal_predictions_have_equal_intervals_and_more_images_narrower_ones():
    small, large = (bootstrap_f1(*guesses(count, 3, 0.8), 3, np.array([0])) for count in (200, 5000))
    assert bootstrap_f1(*guesses(200, 3, 0.8), 3, np.array([0])) == small
    widths = [found.macro.high - found.macro.low for found in (small, large)]
    assert widths[0] / widths[1] == pytest.approx(5, rel=0.2)  # the root of 25


@pytest.mark.parametrize(
    ("won", "lost", "p_value"), [(0, 0, 1.0), (1, 0, 0.5), (0, 1, 1.0), (3, 1, 5 / 16), (10, 2, 79 / 4096)]
)
def test_sign_test_by_counting(won, lost, p_value):
    assert sign_test(won, lost) == pytest.approx(p_value)


@pytest.mark.parametrize(("won", "lost"), [(6, 1), (0, 9), (5, 5), (700, 640), (3, 2)])
def test_mcnemar_test_is_the_two_sided_binomial_test(won, lost):
    assert mcnemar_test(won, lost) == pytest.approx(binomtest(won, won + lost).pvalue, rel=1e-9)
    assert mcnemar_test(won, lost) == mcnemar_test(lost, won)


@pytest.mark.parametrize(("more", "fewer"), [(0.1, 0.05), (0.02, 0.02), (0.3, 0.1), (0.01, 0.0)])
def test_interval_of_the_difference_holds_it_in_about_95_of_100_samples(more, fewer):
    """Summed over every outcome of 60 images: won and lost are multinomial."""
    count, covered = 60, 0.0
    for won in range(count + 1):
        for lost in range(count + 1 - won):
            low, high = difference_interval(won, lost, count)[1:]
            if low <= more - fewer <= high:
                ways = math.comb(count, won) * math.comb(count - won, lost)
                covered += ways * more**won * fewer**lost * (1 - more - fewer) ** (count - won - lost)
    assert 0.93 < covered <= 1.0


def test_difference_by_hand():
    # (12.5 - 5.5) / 202 -+ 1.96 * sqrt(18 - 49 / 202) / 202
    found = difference_interval(12, 5, 200)
    assert found.value == 0.035
    assert found[1:] == pytest.approx((-0.0062337, 0.0755406), abs=1e-6)


def test_answered_shares_against_every_threshold():
    rng = np.random.default_rng(1)
    confidences = np.round(rng.random(80), 1)  # with ties
    is_right = rng.random(80) < confidences
    cuts = answered_shares(confidences, is_right)
    assert [cut.threshold for cut in cuts] == sorted(set(confidences), reverse=True)
    for cut in cuts:
        kept = confidences >= cut.threshold
        assert (cut.share, cut.accuracy) == pytest.approx((kept.mean(), is_right[kept].mean()))
    best = answered_at(cuts, 0.8)
    assert best.share == max(cut.share for cut in cuts if cut.accuracy >= 0.8)
    assert answered_at(answered_shares(np.array([0.9]), np.array([False])), 0.5) is None
