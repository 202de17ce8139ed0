"""Class counts and weights against closed forms and scikit-learn."""

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from cvtrain.data.balance import class_counts, class_weights, oversampling_weights

LABELS = np.array([0] * 6 + [1] * 3 + [2] * 1)


def test_counts_include_classes_without_images() -> None:
    counts = class_counts(LABELS, 4)
    assert counts.tolist() == [6, 3, 1, 0] and counts.dtype == np.int64


def test_weights_are_scikit_learns_balanced_ones() -> None:
    weights = class_weights(class_counts(LABELS, 3))
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 10 / 3])
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=LABELS))
    np.testing.assert_allclose(weights[LABELS].mean(), 1)


def test_a_class_without_images_weighs_nothing_and_the_mean_stays_one() -> None:
    weights = class_weights(class_counts(LABELS, 5))
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 10 / 3, 0, 0])


def test_every_class_has_the_same_share_of_the_drawing() -> None:
    weights = oversampling_weights(LABELS, 3)
    np.testing.assert_allclose(np.bincount(LABELS, weights=weights / weights.sum()), [1 / 3] * 3)
