"""Temperature scaling: one number that makes the probabilities of a network honest (Guo et al. 2017, arXiv 1706.04599).

The class that is predicted stays the same; probabilities are softmax(logits / temperature).
"""

from typing import Any

import numpy as np
import torch

from cvtrain.metrics import ClassificationMetrics
from cvtrain.training.evaluator import Evaluation, Predictions

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_MAX_STEPS = 60
_CHUNK = 4096  # images whose probabilities are computed at once


def fit_temperature(predictions: Predictions) -> float:
    """Return the temperature with the least cross-entropy; 1 where there are no logits to fit it on.

    One image more, whose class is any with the same chance, keeps it from 0 where every prediction is right.
    """
    num_images, num_classes = predictions.logits.shape
    if num_images == 0 or num_classes < 2:
        return 1.0
    logits = torch.from_numpy(predictions.logits).double()
    if not bool(logits.isfinite().all()):
        return 1.0
    share = 1 / (num_images + 1)
    picked = logits.gather(1, torch.from_numpy(predictions.labels)[:, None]).squeeze(1)
    wanted = ((1 - share) * picked + share * logits.mean(dim=1)).mean()
    # The cross-entropy is convex in 1 / temperature: Newton's method, by bisection where it leaves the bracket.
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    scale = 1.0
    for _ in range(_MAX_STEPS):
        probs = (logits * scale).softmax(dim=1)
        mean = (probs * logits).sum(dim=1)
        slope = float(mean.mean() - wanted)
        curvature = float(((probs * logits.square()).sum(dim=1) - mean.square()).mean())
        low, high = (scale, high) if slope < 0 else (low, scale)
        step = scale - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - scale) <= 1e-9 * scale:
            break
        scale = following
    return 1 / scale


def measure_calibration(predictions: Predictions, temperature: float) -> ClassificationMetrics | None:
    """Return the metrics of the probabilities at a temperature, whose loss is left out; None without logits."""
    logits, labels = torch.from_numpy(predictions.logits), torch.from_numpy(predictions.labels)
    if logits.numel() == 0:
        return None
    metrics = ClassificationMetrics(logits.shape[1], logits.device)
    metrics.update(logits / temperature, labels, torch.zeros(len(labels)))
    return metrics


def calibration_error(predictions: Predictions, temperature: float) -> float | None:
    """Return the expected calibration error (see `ClassificationMetrics.compute`), in 0..1; None without logits."""
    metrics = measure_calibration(predictions, temperature)
    return None if metrics is None else metrics.compute()["calibration_error"]


def top_probs(predictions: Predictions, temperature: float, device: torch.device) -> np.ndarray:
    """Return (N, k) float32, the probabilities of `top_classes`, computed on `device` as `Classifier` does."""
    parts = []
    for first in range(0, len(predictions.labels), _CHUNK):
        logits = torch.from_numpy(predictions.logits[first : first + _CHUNK]).to(device)
        classes = torch.from_numpy(predictions.top_classes[first : first + _CHUNK]).to(device)
        parts.append((logits / temperature).softmax(dim=1).gather(1, classes).cpu().numpy())
    return np.concatenate(parts)


def calibrate(evaluation: Evaluation, device: torch.device) -> None:
    """Let the probabilities of an evaluation be those of its temperature, where it has the logits."""
    if evaluation.temperature != 1.0 and evaluation.predictions.logits.size:
        evaluation.predictions.top_probs = top_probs(evaluation.predictions, evaluation.temperature, device)


def describe_calibration(evaluation: Evaluation) -> dict[str, Any]:
    """Return the temperature, and calibration error and bins without and with it, for a summary."""
    found = {
        when: measure_calibration(evaluation.predictions, temperature)
        for when, temperature in (("before", 1.0), ("after", evaluation.temperature))
    }
    return {
        "temperature": evaluation.temperature,
        **{f"error_{when}": each and each.compute()["calibration_error"] for when, each in found.items()},
        **{f"bins_{when}": each and each.calibration_bins() for when, each in found.items()},
    }
