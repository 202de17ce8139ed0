"""Properties that give the class away, against closed forms and a naive loop."""

import numpy as np
import pytest

from cvtrain.check.measure import Measurements
from cvtrain.check.shortcuts import NUM_FOLDS, NUM_PERMUTATIONS, into_bins, permutation_test, shortcut_findings


def test_a_property_that_is_the_class():
    labels = np.arange(60) % 3
    assert permutation_test(labels, labels) == (1.0, 1 / (NUM_PERMUTATIONS + 1))


def test_a_property_without_the_class():
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    accuracy, p = permutation_test(rng.integers(0, 4, 2000), labels)
    assert accuracy == pytest.approx(0.5, abs=0.05)
    assert p > 0.01


def test_balanced_accuracy_by_a_naive_loop():
    rng = np.random.default_rng(1)
    labels = np.sort(rng.choice(3, 200, p=[0.7, 0.2, 0.1]))
    bins = (labels + rng.integers(0, 2, 200)) % 4
    accuracy, _ = permutation_test(bins, labels)
    rng = np.random.default_rng(0)
    folds, shuffled = np.empty(200, int), rng.permutation(200)
    for place, row in enumerate(sorted(shuffled, key=lambda row: labels[row])):
        folds[row] = place % NUM_FOLDS
    hits = np.zeros(3)
    for fold in range(NUM_FOLDS):
        for row in np.flatnonzero(folds == fold):
            alike = (folds != fold) & (bins == bins[row])
            weights = [(alike & (labels == label)).sum() / (labels == label).sum() for label in range(3)]
            hits[labels[row]] += int(np.argmax(weights)) == labels[row]
    assert accuracy == pytest.approx((hits / np.bincount(labels)).mean(), abs=1e-12)


def test_bins_have_equal_shares():
    values = np.random.default_rng(0).permutation(100)
    assert np.bincount(into_bins(values, 4)).tolist() == [25] * 4
    assert into_bins(np.zeros(9), 4).max() == 0 or len(set(into_bins(np.zeros(9), 4).tolist())) == 1


class Labelled:
    def __init__(self, labels):
        self.labels = labels


@pytest.mark.parametrize("gap", [0, 60])
def test_brightness_is_found_where_it_tells_the_class(gap):
    rng, labels = np.random.default_rng(0), np.arange(300) % 3
    made = Measurements.empty(300)
    made.heights[:] = made.widths[:] = 64
    made.means[:] = rng.normal(60, 10, 300) + gap * labels
    made.cameras[:] = labels == 1
    found = {each.detail.split(" alone")[0]: each.score for each in shortcut_findings(Labelled(labels), made)}
    assert set(found) == ({"brightness", "camera (EXIF)"} if gap else {"camera (EXIF)"})
    assert found["camera (EXIF)"] == pytest.approx(2 / 3, abs=0.01)
