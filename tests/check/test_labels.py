"""Suspect labels: against a naive loop over the definition, and found where they were put."""

import numpy as np
import pytest
import torch

from cvtrain.check.labels import SURE_MARGIN, out_of_fold_probs, suspects


def naive_suspects(probs, labels):
    """Confident learning by its words, image by image, and what is sure."""
    classes = range(probs.shape[1])
    thresholds = {k: np.mean([p[k] for p, label in zip(probs, labels, strict=True) if label == k]) for k in classes}
    found = {}
    for index, (p, label) in enumerate(zip(probs, labels, strict=True)):
        confident = [k for k in classes if p[k] >= thresholds[k]]
        if confident:
            likely = max(confident, key=lambda k: p[k])
            if likely != label and p[likely] > p[label]:
                found[index] = (likely, p[likely] - p[label])
        if index not in found and max(p) - p[label] >= SURE_MARGIN:
            found[index] = (int(np.argmax(p)), max(p) - p[label])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_suspects_by_the_definition(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 300)
    probs = rng.dirichlet(np.full(4, 0.5), 300) + 0.7 * np.eye(4)[labels] * rng.random((300, 1))
    probs /= probs.sum(axis=1, keepdims=True)
    expected = naive_suspects(probs, labels)
    rows, likely, margins = suspects(probs, labels)
    assert dict(zip(rows.tolist(), likely.tolist(), strict=True)) == {row: k for row, (k, _) in expected.items()}
    assert margins.tolist() == pytest.approx([expected[row][1] for row in rows.tolist()], abs=1e-12)
    assert np.all(np.diff(margins) <= 0)


def test_a_class_without_images_suspects_nobody():
    probs = np.array([[0.4, 0.1, 0.5], [0.2, 0.35, 0.45], [0.6, 0.3, 0.1]])
    assert suspects(probs, np.array([0, 1, 0]))[0].tolist() == []


def blobs(per_class=100, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 1, (classes, 16)) * 2
    truth = np.repeat(np.arange(classes), per_class)
    return torch.from_numpy(centers[truth] + rng.normal(0, 1, (len(truth), 16))).float(), truth, rng


def test_what_is_sure_is_a_suspect_in_a_class_of_higher_confidence():
    probs = np.array([[0.2, 0.8], [0.05, 0.95], [0.02, 0.98], [0.9, 0.1]])
    rows, likely, margins = suspects(probs, np.array([0, 1, 1, 0]))
    assert (rows.tolist(), likely.tolist()) == ([0], [1])
    assert margins.tolist() == pytest.approx([0.6])


def test_five_percent_of_wrong_labels_are_found():
    features, truth, rng = blobs()
    wrong = rng.choice(len(truth), len(truth) // 20, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 5, len(wrong))) % 5
    probs = out_of_fold_probs(features, torch.from_numpy(labels), 5).numpy()
    found = set(suspects(probs, labels)[0].tolist())
    hits = len(found & set(wrong.tolist()))
    assert hits >= 0.8 * len(wrong)
    assert hits >= 0.5 * len(found)


def test_probabilities_come_from_other_images():
    features, truth, _ = blobs(per_class=20, classes=2)
    labels = torch.from_numpy(truth)
    flipped = labels.clone()
    flipped[3] = 1
    before, after = (out_of_fold_probs(features, each, 2)[3] for each in (labels, flipped))
    assert after.argmax() == before.argmax() == 0
    assert out_of_fold_probs(features, labels, 2).sum(dim=1).tolist() == pytest.approx([1.0] * 40, abs=1e-5)


def test_a_class_with_one_image_is_no_obstacle():
    features, truth, _ = blobs(per_class=6, classes=2)
    labels = torch.from_numpy(truth)
    labels[0] = 2
    assert out_of_fold_probs(features, labels, 3).shape == (12, 3)
