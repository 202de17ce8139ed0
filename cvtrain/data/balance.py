"""Class imbalance: counts, weights for the loss and weights for sampling."""

import numpy as np
import torch

from cvtrain.config.schema.data import Balance


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return images per class, (num_classes,) int64, from class ids `labels` (N,)."""
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def class_weights(counts: np.ndarray) -> np.ndarray:
    """Return the weight of each class in the loss, (K,) float64, from its images `counts` (K,): N / (K' * n_c).

    N is the sum of all counts, K' the number of classes that occur; a class without images gets 0. This is
    scikit-learn's `class_weight="balanced"`: every class weighs the same in sum, and the mean over all images is 1.
    """
    occurs = counts > 0
    weights = np.zeros(len(counts))
    weights[occurs] = counts.sum() / (occurs.sum() * counts[occurs])
    return weights


def oversampling_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the weight of each image in sampling with replacement, (N,) float64: that of its class.

    Every class is then sampled equally often on average, N / K times in an epoch of N samples.
    """
    return class_weights(class_counts(labels, num_classes))[labels]


def loss_weights(balance: Balance, labels: np.ndarray, num_classes: int) -> torch.Tensor | None:
    """Return the class weights of the loss, (num_classes,) float32, for `data.balance=class_weights`, else None."""
    if balance is not Balance.class_weights:
        return None
    return torch.from_numpy(class_weights(class_counts(labels, num_classes))).float()
