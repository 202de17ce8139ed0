"""The digits are read from scikit-learn's file, to the values that scikit-learn itself gives."""

import numpy as np
from sklearn.datasets import load_digits

from cvtrain.data.sources.digits import load_values


def test_values_and_classes_are_scikit_learns():
    digits = load_digits()
    values, labels = load_values()
    assert np.array_equal(values, digits.images)
    assert np.array_equal(labels, digits.target)
    assert labels.dtype == np.int64


def test_a_scikit_learn_that_keeps_them_elsewhere_is_asked(monkeypatch):
    monkeypatch.setattr("cvtrain.data.sources.digits._FILE", ("datasets", "data", "moved.csv.gz"))
    values, labels = load_values()
    assert values.shape == (1797, 8, 8)
    assert labels.dtype == np.int64
