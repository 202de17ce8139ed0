"""The proof of an export: its answers to image files beside those of cvtrain."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cvtrain.metrics import wilson_interval


@dataclass(frozen=True)
class Limits:
    """What still counts as the same answers. None: no such limit.

    Attributes:
        difference: largest difference of a probability, for the same pixels.
        agreement: smallest share of images with the same most probable class. Ties are no disagreement: classes whose
            probabilities are less than 2 `difference` apart.
        drop: by which the accuracy may be lower.
    """

    difference: float | None = None
    agreement: float | None = None
    drop: float | None = None


@dataclass(frozen=True)
class Answers:
    """What a model says of N images.

    Attributes:
        probs: (N, num_classes) float32.
        pixels: (M, S, S, C) uint8, what it saw of the first M images.
        latency_ms: milliseconds of a batch, by its size.
        probs_of_pixels: (M, num_classes) float32, of the pixels that the other model saw; None: both saw the same.
    """

    probs: np.ndarray
    pixels: np.ndarray
    latency_ms: dict[str, float]
    probs_of_pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Proof:
    """The comparison of an exported model with cvtrain.

    Attributes:
        num_images: N.
        num_agreeing: images with the same most probable class.
        difference: the largest one of a probability, from files.
        same_pixels: the same, where the export was given the pixels that cvtrain saw; None: both read the files alike.
        pixel_difference: the largest one of a pixel, 0..255.
        num_right: images whose most probable class is their label, by cvtrain and by the export; None: no labels.
        latency_ms: of a batch by its size, of cvtrain and of the export.
    """

    num_images: int
    num_agreeing: int
    difference: float
    pixel_difference: int
    num_right: tuple[int, int] | None
    latency_ms: dict[str, tuple[float, float]]
    same_pixels: float | None = None

    def failure(self, limits: Limits) -> str | None:
        """Return the limit that does not hold, in words; None if all do."""
        difference = self.difference if self.same_pixels is None else self.same_pixels
        if not difference <= (math.inf if limits.difference is None else limits.difference):
            return f"a probability differs by {difference:.2g}, more than {limits.difference:g}"
        agreement = self.num_agreeing / self.num_images
        if limits.agreement is not None and agreement < limits.agreement:
            return f"{agreement:.2%} of the images get the same class, fewer than {limits.agreement:.2%}"
        if limits.drop is not None and self.num_right is not None:
            drop = (self.num_right[0] - self.num_right[1]) / self.num_images
            if drop > limits.drop:
                return f"the accuracy falls by {drop:.4f}, more than {limits.drop:g}"
        return None

    def lines(self, name: str) -> list[str]:
        """Return the table, a line each; `name` is the exported file's."""
        agreement = f"{self.num_agreeing / self.num_images:.2%} ({self.num_agreeing:,} of {self.num_images:,})"
        rows: list[list[str]] = [
            ["", "cvtrain", name],
            ["same class", "", agreement],
            ["largest difference of a probability", "", f"{self.difference:.1e}"],
            *([] if self.same_pixels is None else [["the same, given equal pixels", "", f"{self.same_pixels:.1e}"]]),
            ["largest difference of a pixel", "", f"{self.pixel_difference} of 255"],
        ]
        if self.num_right is not None:
            texts = [accuracy_text(right, self.num_images) for right in self.num_right]
            rows.append(["accuracy (95 % interval)", *texts])
        for size, both in self.latency_ms.items():
            rows.append([f"ms per batch of {size}", *(f"{value:.1f}" for value in both)])
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

    def to_json(self) -> dict[str, Any]:
        """Return the record of the proof, plain values."""
        return asdict(self)


def compare(ours: Answers, theirs: Answers, labels: np.ndarray | None) -> Proof:
    """Compare the answers of cvtrain and of an exported model to the same N images; `labels` (N,) class ids."""
    preds = [each.probs.argmax(axis=1) for each in (ours, theirs)]
    pixels = np.abs(ours.pixels.astype(np.int16) - theirs.pixels)
    return Proof(
        num_images=len(ours.probs),
        num_agreeing=int((preds[0] == preds[1]).sum()),
        difference=_difference(ours.probs, theirs.probs),
        pixel_difference=int(pixels.max(initial=0)),
        num_right=None if labels is None else (int((preds[0] == labels).sum()), int((preds[1] == labels).sum())),
        latency_ms={size: (ours.latency_ms[size], theirs.latency_ms[size]) for size in theirs.latency_ms},
        same_pixels=None
        if theirs.probs_of_pixels is None
        else _difference(ours.probs[: len(theirs.probs_of_pixels)], theirs.probs_of_pixels),
    )


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays; infinite if the second has numbers that are none."""
    return float(np.abs(ours.astype(np.float64) - theirs).max()) if np.isfinite(theirs).all() else math.inf


def accuracy_text(num_right: int, num_images: int) -> str:
    """Return `0.9542 (0.9089 to 0.9776)`."""
    low, high = wilson_interval(num_right, num_images)
    return f"{num_right / num_images:.4f} ({low:.4f} to {high:.4f})"
