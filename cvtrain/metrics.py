"""Classification metrics over a whole split, each sample counted once, with scikit-learn's definitions."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

METRIC_NAMES = ("loss", "accuracy", "top5_accuracy", "macro_f1", "balanced_accuracy", "calibration_error")
# Guo et al. 2017 use 15.
CALIBRATION_BINS = 15

# 95 % of a normal distribution lie within so many standard deviations of its mean.
Z = 1.959964


class ClassificationMetrics:
    """Sums over the samples seen so far, kept on the device: `update` never makes the host wait.

    The memory is three counts per class; `count_confusions` counts pairs of classes.

    Logits that are NaN have no prediction: argmax takes the first NaN, so accuracy counts an arbitrary class there.
    `loss` and `calibration_error` then are NaN.

    Args:
        num_classes: number of classes K, at least 1.
        device: where `update` gets its tensors.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.num_classes = num_classes
        # MPS has no float64.
        self._real = torch.float32 if device.type == "mps" else torch.float64
        # Of each class, samples that were predicted right, samples, and predictions.
        self._classes = torch.zeros(3 * num_classes, dtype=torch.int64, device=device)
        # Top-5 hits, then samples and hits per calibration bin.
        self._counts = torch.zeros(1 + 2 * CALIBRATION_BINS, dtype=torch.int64, device=device)
        # The sum of losses, then the sum of confidences per calibration bin.
        self._sums = torch.zeros(1 + CALIBRATION_BINS, dtype=self._real, device=device)
        # Bins are (0, 1/15], (1/15, 2/15], ..., (14/15, 1].
        self._bin_edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64)[1:-1].to(device, self._real)
        self._bins = torch.arange(CALIBRATION_BINS, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, K), any float type.
            labels: (B,) int64 class ids.
            losses: (B,) the loss of each sample.
        """
        logits = logits.float()
        confidences = logits.softmax(dim=1).amax(dim=1)  # (B,)
        preds = logits.argmax(dim=1)
        hits = preds == labels
        index = torch.cat([labels, labels + self.num_classes, preds + 2 * self.num_classes])
        self._classes.index_add_(0, index, torch.cat([hits.long(), torch.ones_like(labels), torch.ones_like(labels)]))
        if self.num_classes > 5:
            self._counts[0] += (logits.topk(5, dim=1).indices == labels.unsqueeze(1)).sum()
        # Sums of masks, not scatters: floating scatters add in no fixed order on a GPU.
        confidences = confidences.to(self._real)
        in_bin = torch.bucketize(confidences, self._bin_edges).unsqueeze(1) == self._bins  # (B, bins)
        self._counts[1:] += torch.cat([in_bin.sum(dim=0), (in_bin & hits.unsqueeze(1)).sum(dim=0)])
        self._sums[0] += losses.to(self._real).sum()
        self._sums[1:] += torch.where(in_bin, confidences.unsqueeze(1), 0.0).sum(dim=0)

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums themselves, not copies: add those of other ranks in place (all-reduce) to merge them."""
        return self._classes, self._counts, self._sums

    def compute(self) -> dict[str, float]:
        """Return the metrics, named as in `METRIC_NAMES`; `top5_accuracy` only with more than 5 classes.

        loss: mean of the samples' losses. accuracy, top5_accuracy: share of samples whose class is the first, among the
        first five, by logit. macro_f1: mean F1 of the classes that occur as true or predicted. balanced_accuracy: mean
        recall of the classes that occur as true. calibration_error: sum over 15 equal-width bins of confidence of
        |hits - sum of confidences| / samples (ECE, Guo et al. 2017, equation 3). Without samples each is NaN.
        """
        classes, counts, sums = (tensor.cpu().numpy() for tensor in self.state())
        num_samples = int(classes[self.num_classes : 2 * self.num_classes].sum())
        if num_samples == 0:
            values = dict.fromkeys(METRIC_NAMES, float("nan"))
        else:
            hits, support, predicted = classes.reshape(3, -1)
            _, recall, f1 = _class_scores(hits, support, predicted)
            bin_hits = counts[1 + CALIBRATION_BINS :]
            values = {
                "loss": float(sums[0] / num_samples),
                "accuracy": float(hits.sum() / num_samples),
                "top5_accuracy": float(counts[0] / num_samples),
                "macro_f1": float(f1[support + predicted > 0].mean()),
                "balanced_accuracy": float(recall[support > 0].mean()),
                "calibration_error": float(np.abs(bin_hits - sums[1:]).sum() / num_samples),
            }
        if self.num_classes <= 5:
            del values["top5_accuracy"]
        return values

    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall, f1 (fractions) and support (samples) of each class, in order of id.

        A ratio without a denominator (a class never predicted, a class without samples) is 0, as in scikit-learn.
        """
        hits, support, predicted = self._classes.cpu().numpy().reshape(3, -1)
        precision, recall, f1 = _class_scores(hits, support, predicted)
        return [
            {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for p, r, f, n in zip(precision, recall, f1, support, strict=True)
        ]

    def calibration_bins(self) -> list[dict[str, float]]:
        """Return images, right ones and the sum of confidences of each of the 15 bins, from low confidence to high."""
        _, counts, sums = (tensor.cpu().numpy() for tensor in self.state())
        images, right = counts[1 : 1 + CALIBRATION_BINS], counts[1 + CALIBRATION_BINS :]
        return [
            {"images": int(n), "right": int(k), "confidence": float(total)}
            for n, k, total in zip(images, right, sums[1:], strict=True)
        ]


def count_confusions(labels: np.ndarray, preds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of true and predicted class that occur, and how often: three arrays (M,) int64, ordered.

    Args:
        labels: (N,) class ids.
        preds: (N,) class ids.
    """
    pairs, counts = np.unique(np.stack([labels, preds]), axis=1, return_counts=True)
    return pairs[0], pairs[1], counts


def wilson_interval(num_right: float, num_images: int, z: float = Z) -> tuple[float, float]:
    """Return the interval that holds a share with 95 % confidence, in 0..1 (Wilson 1927, without continuity)."""
    share, square = num_right / num_images, z * z
    center = (share + square / (2 * num_images)) / (1 + square / num_images)
    spread = math.sqrt(share * (1 - share) / num_images + square / (4 * num_images**2))
    half = z / (1 + square / num_images) * spread
    return max(0.0, center - half), min(1.0, center + half)


def _class_scores(
    hits: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1, each (K,); 0 where there is no denominator."""
    return hits / np.maximum(predicted, 1), hits / np.maximum(support, 1), 2 * hits / np.maximum(support + predicted, 1)
