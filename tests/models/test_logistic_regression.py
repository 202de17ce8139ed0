"""The regression that new heads start from, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from cvtrain.models.logistic_regression import (
    MAX_FOLDS,
    choose_l2,
    fit_logistic_regression,
    minimize,
    stratified_folds,
)


def blobs(num_images, num_features, num_classes, *, spread=2.0):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, num_features, generator=generator)
    labels = torch.arange(num_images) % num_classes
    return centres[labels] + spread * torch.randn(num_images, num_features, generator=generator), labels


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_the_optimum_is_scikit_learns(l2):
    features, labels = blobs(300, 20, 4)
    theta = minimize(features.double(), labels, torch.ones(4).double(), l2, max_updates=500).numpy()
    oracle = LogisticRegression(C=1 / (l2 * 300), tol=1e-10, max_iter=5000).fit(features.double(), labels)
    assert pytest.approx(oracle.coef_, abs=1e-5) == theta[:-1].T
    assert theta[-1] - theta[-1].mean() == pytest.approx(oracle.intercept_ - oracle.intercept_.mean(), abs=1e-5)


def test_class_weights_are_scikit_learns():
    features, labels = blobs(200, 8, 3)
    weights = torch.tensor([1.0, 4.0, 0.5]).double()
    theta = minimize(features.double(), labels, weights, 0.1, max_updates=500).numpy()
    total = float(weights[labels].sum())
    oracle = LogisticRegression(
        C=1 / (0.1 * total), class_weight=dict(enumerate(weights.tolist())), tol=1e-10, max_iter=5000
    ).fit(features.double(), labels)
    assert pytest.approx(oracle.coef_, abs=1e-5) == theta[:-1].T


def test_features_of_any_scale_give_the_same_logits():
    features, labels = blobs(120, 10, 3, spread=1.0)
    one, thousand = (fit_logistic_regression(features * scale, labels, 3) for scale in (1.0, 1000.0))
    logits = features @ one.weight.T + one.bias
    assert one.l2 == thousand.l2
    assert torch.allclose(features * 1000 @ thousand.weight.T + thousand.bias, logits, rtol=0.01, atol=0.01)
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_noise_gets_a_stronger_penalty_than_signal():
    signal, labels = blobs(200, 50, 2, spread=0.5)
    noise = torch.randn(200, 50, generator=torch.Generator().manual_seed(1))
    assert choose_l2(noise, labels, 2, torch.ones(2)).l2 > choose_l2(signal, labels, 2, torch.ones(2)).l2


def test_held_out_accuracy_of_noise_is_chance():
    noise = torch.randn(400, 30, generator=torch.Generator().manual_seed(2))
    found = choose_l2(noise, torch.arange(400) % 2, 2, torch.ones(2))
    assert found.num_folds == MAX_FOLDS
    assert found.accuracy == pytest.approx(0.5, abs=0.1)


def test_many_images_hold_one_fold_out_and_end_where_scikit_learn_does():
    features, labels = blobs(2400, 300, 100, spread=1.0)
    features = torch.relu(features)
    found = fit_logistic_regression(features, labels, 100)
    scaled = features / features.square().mean().sqrt()
    oracle = LogisticRegression(C=1 / (found.l2 * 2400), tol=1e-6, max_iter=2000).fit(scaled, labels)
    logits = torch.from_numpy(oracle.decision_function(scaled))
    ours = features @ found.weight.T + found.bias
    assert found.num_folds == 3 and found.accuracy == pytest.approx(oracle.score(scaled, labels), abs=0.1)
    loss = torch.nn.functional.cross_entropy(ours, labels).item()
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=0.05, abs=0.01)
    assert (ours.argmax(1) == logits.argmax(1)).float().mean() > 0.99


def test_the_same_features_give_the_same_bits_and_draw_no_random_numbers():
    features, labels = blobs(60, 300, 3)
    before = torch.get_rng_state()
    first, second = (fit_logistic_regression(features, labels, 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_folds_share_each_class_evenly():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 3)
    folds = stratified_folds(labels, 3)
    assert np.bincount(folds).tolist() == [4] * 5
    for label in range(3):
        shares = np.bincount(folds[labels == label], minlength=5)
        assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("per_class", [1, 2])
def test_one_or_two_images_per_class_are_enough_for_a_start(per_class):
    features, labels = blobs(5 * per_class, 16, 5, spread=0.1)
    found = fit_logistic_regression(features, labels, 5)
    assert ((features @ found.weight.T + found.bias).argmax(1) == labels).all()
    assert found.num_folds == (0 if per_class == 1 else 2)


def test_a_class_without_images_and_equal_features_are_no_obstacle():
    features, labels = torch.ones(12, 4), torch.arange(12) % 2
    found = fit_logistic_regression(features, labels, 3)
    assert torch.isfinite(found.weight).all() and torch.isfinite(found.bias).all()
    assert fit_logistic_regression(torch.zeros(12, 4), labels, 3).weight.abs().max() == 0
