"""Multinomial logistic regression on features, with its L2 penalty chosen by cross-validation.

The start of a new head: linear probing before fine-tuning keeps the features that fine-tuning from a random head would
distort (LP-FT, Kumar et al. 2022, arXiv 2202.10054).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

# Strengths that are tried, for features of mean square 1: 1 / (C * N) of scikit-learn's LogisticRegression(C=...).
L2_GRID = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
MAX_FOLDS, FOLDS_OF_MANY = 5, 3
# Of the folds of many images, those that are held out: one tells as much as all do of few.
HELD_OUT_OF_MANY = 1
# Images and principal components that cross-validation looks at: more change little about the penalty and cost time.
MAX_VALIDATED, MAX_COMPONENTS = 2000, 256
# Updates of a fit in the search, which starts from the penalty before.
SEARCH_UPDATES = 12
# Up to this many products in a pass over the features a fit runs to its optimum in float64, beyond it in float32.
MAX_EXACT_PRODUCTS = 2**26
EXACT_UPDATES, MAX_UPDATES = 1000, 30


@dataclass(frozen=True)
class LogisticRegression:
    """A linear classifier: logits are `features @ weight.T + bias`.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        l2: the penalty, for features of mean square 1.
        accuracy: share of held-out images that cross-validation had right; None: it could not be done.
        num_folds: of the cross-validation; 0: none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    l2: float
    accuracy: float | None
    num_folds: int


def fit_logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, *, class_weights: torch.Tensor | None = None
) -> LogisticRegression:
    """Fit a regression with the penalty that has the least loss on held-out images.

    Args:
        features: (N, D) float, on the device where it is fitted.
        labels: (N,) int64.
        num_classes: K; classes without an image are allowed.
        class_weights: (K,) weight of the images of each class; None: 1.
    """
    features = features.float()
    scale = mean_size(features)
    scaled = features / scale
    weights = torch.ones(num_classes, device=features.device) if class_weights is None else class_weights
    weights = weights.to(features)
    chosen = choose_l2(scaled, labels, num_classes, weights)
    is_exact = features.shape[0] * features.shape[1] * num_classes <= MAX_EXACT_PRODUCTS
    if is_exact:
        scaled, weights = scaled.double(), weights.double()
    theta = minimize(
        scaled,
        labels,
        weights,
        chosen.l2,
        max_updates=EXACT_UPDATES if is_exact else MAX_UPDATES,
        start=None if is_exact else chosen.theta,
    )
    weight, bias = (theta[:-1] / scale).T.float().contiguous(), theta[-1].float()
    return LogisticRegression(weight, bias, chosen.l2, chosen.accuracy, chosen.num_folds)


def mean_size(features: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of features."""
    return features.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def cross_validated_accuracy(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float | None:
    """Return the share of held-out images, 0..1, that regressions on the others have right; None: it cannot be done.

    Args:
        features: (N, D) float.
        labels: (N,) int64.
    """
    features = features.float()
    weights = torch.ones(num_classes, device=features.device)
    return choose_l2(features / mean_size(features), labels, num_classes, weights).accuracy


def minimize(
    features: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor,
    l2: float,
    *,
    max_updates: int,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minimise mean weighted cross-entropy + l2 / 2 * |W|^2 by L-BFGS. The bias has no penalty.

    Returns:
        (D + 1, K): weights, and the bias in the last row.
    """
    from scipy.optimize import minimize as lbfgs

    num_classes, num_features = len(class_weights), features.shape[1]
    weights = class_weights[labels]
    weights = weights / weights.sum()

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(flat).to(features).view(num_features + 1, num_classes)
        logits = torch.addmm(theta[-1], features, theta[:-1])
        log_probs = logits.log_softmax(1)
        picked = log_probs.gather(1, labels[:, None]).squeeze(1)
        errors = log_probs.exp().mul_(weights[:, None])
        errors.scatter_add_(1, labels[:, None], -weights[:, None])
        gradient = torch.cat([features.T @ errors + l2 * theta[:-1], errors.sum(0, keepdim=True)])
        loss = l2 / 2 * theta[:-1].square().sum() - (weights * picked).sum()
        return loss.item(), gradient.flatten().cpu().double().numpy()

    first = np.zeros((num_features + 1) * num_classes) if start is None else start.flatten().cpu().double().numpy()
    options = {"maxiter": max_updates, "maxfun": 2 * max_updates, "gtol": 1e-8, "ftol": 1e-14}
    found = lbfgs(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).to(features).view(num_features + 1, num_classes)


@dataclass(frozen=True)
class ChosenPenalty:
    """The penalty with the least loss on held-out images.

    Attributes:
        l2: the penalty.
        accuracy: share of held-out images that were right; None: nothing could be held out.
        num_folds: parts that the images were split into; 0: nothing could be held out.
        theta: (D + 1, K), the fit of one fold with it, from which a fit on all images may start; None: there is none.
    """

    l2: float
    accuracy: float | None = None
    num_folds: int = 0
    theta: torch.Tensor | None = None


def choose_l2(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, class_weights: torch.Tensor
) -> ChosenPenalty:
    """Choose the penalty with the least loss on held-out folds.

    From the strongest penalty down until the loss rises, each fit starting from the one before. A set that has no
    class with two images cannot be split: it gets a middling penalty.
    """
    is_many = len(labels) > MAX_VALIDATED
    if is_many:
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MAX_VALIDATED]
        features, labels = features[chosen.to(features.device)], labels[chosen.to(labels.device)]
    components: torch.Tensor | None = None
    if features.shape[1] > MAX_COMPONENTS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            components = torch.pca_lowrank(features, min(MAX_COMPONENTS, len(features)), niter=1)[2]
        features = features @ components
    folds = stratified_folds(labels, num_classes)
    num_folds = int(folds.max()) + 1
    if num_folds < 2:
        return ChosenPenalty(L2_GRID[len(L2_GRID) // 2])
    held_out_folds = HELD_OUT_OF_MANY if is_many else num_folds
    starts: list[torch.Tensor | None] = [None] * held_out_folds
    best: tuple[float, float, float, torch.Tensor] | None = None
    for l2 in L2_GRID:
        loss = correct = total = 0.0
        number = 0
        for fold in range(held_out_folds):
            seen, held_out = folds != fold, folds == fold
            theta = minimize(
                features[seen], labels[seen], class_weights, l2, max_updates=SEARCH_UPDATES, start=starts[fold]
            )
            starts[fold] = theta
            logits = torch.addmm(theta[-1], features[held_out], theta[:-1])
            weights = class_weights[labels[held_out]]
            loss += float((F.cross_entropy(logits, labels[held_out], reduction="none") * weights).sum())
            correct += float((logits.argmax(1) == labels[held_out]).sum())
            total += float(weights.sum())
            number += len(weights)
        loss /= total
        if best is not None and loss >= best[0]:
            break
        first = starts[0]
        assert first is not None
        best = (loss, l2, correct / number, first)
    assert best is not None
    theta = best[3]
    if components is not None:
        theta = torch.cat([components @ theta[:-1], theta[-1:]])
    return ChosenPenalty(best[1], best[2], num_folds, theta)


def stratified_folds(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return (N,) int64, the fold of each image: up to five, as many as the largest class has images."""
    counts = torch.bincount(labels, minlength=num_classes)
    most = MAX_FOLDS if len(labels) < MAX_VALIDATED else FOLDS_OF_MANY
    return deal_folds(labels, min(most, int(counts.max())))


def deal_folds(labels: torch.Tensor, num_folds: int) -> torch.Tensor:
    """Return (N,) int64, the fold of each image below `num_folds`.

    The images of a class go to the folds in turn, beginning where the class before ended.
    """
    # Position of each image in the order of classes.
    order = torch.argsort(labels, stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(labels), device=labels.device)
    return position % num_folds
