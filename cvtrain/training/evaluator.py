"""One pass over a split without learning: figures, confusion matrix and a prediction per image."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from cvtrain.config.errors import RunError
from cvtrain.data.build import Batch
from cvtrain.data.loader.prefetch import prefetch_to_device
from cvtrain.data.normalize import Identity, Normalizer
from cvtrain.distributed.coordinator import Coordinator
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.losses import Criterion
from cvtrain.metrics import ClassificationMetrics
from cvtrain.runtime.precision import autocast
from cvtrain.runtime.signals import StopSignals

# Up to this many classes predictions keep the probability of each, beyond it of the best five.
FULL_PROBS_CLASSES = 20
TOP_PROBS = 5
# Logits of a split are kept, for its temperature, up to this many numbers (128 MiB).
MAX_LOGITS = 2**25


@dataclass
class Predictions:
    """The predictions of each image, in the order of the split.

    Attributes:
        indices: (N,) int64, position in the split.
        labels: (N,) int64 class ids.
        top_classes: (N, k) int64, the classes of the largest probabilities, best first. k is the number of
            classes up to 20, else 5.
        top_probs: (N, k) float32, their probabilities.
        losses: (N,) float32.
        logits: (N, num_classes) float32; (N, 0) of splits with more than 2^25 of them.
    """

    indices: np.ndarray
    labels: np.ndarray
    top_classes: np.ndarray
    top_probs: np.ndarray
    losses: np.ndarray
    logits: np.ndarray

    @property
    def preds(self) -> np.ndarray:
        """(N,) int64, the most probable class."""
        return self.top_classes[:, 0]


@dataclass
class Evaluation:
    """Result of `Evaluator.evaluate`; metric names are without prefix, fractions are in 0..1.

    Attributes:
        temperature: that divides the logits of these weights before they become probabilities.
        average: share of the end in weights between start and end; None: they are no average.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    predictions: Predictions
    num_images: int
    num_skipped: int = 0
    step: int = 0
    epoch: int = 0
    interrupted: bool = field(default=False)
    temperature: float = 1.0
    average: float | None = None


@dataclass(kw_only=True)
class Evaluator:
    """Scores networks on every batch of a split; each image counts once, whatever the batch sizes.

    Of several ranks, each scores its shares of the batches. All get the same figures, and rank 0 the predictions.

    Args:
        criterion: has `per_sample(logits, targets) -> (B,)` and the number of classes.
        flip: score the mean of the logits of each image and of its mirror image.
        temperature: probabilities are softmax(logits / temperature).
        on_batch: called with the number of images of each batch, for a progress bar.
        coordinator: checked after each batch; once a signal has come the result is marked `interrupted`. The default
            knows no signal.
        world: the ranks that share the batches.
    """

    criterion: Criterion
    normalizer: Normalizer | Identity
    device: torch.device
    dtype: torch.dtype
    flip: bool = False
    temperature: float = 1.0
    on_batch: Callable[[int], None] = lambda num_images: None
    coordinator: Coordinator = field(default_factory=lambda: Coordinator(StopSignals()))
    world: ProcessGroup = SINGLE_PROCESS

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """Return the figures of one pass without learning.

        Args:
            model: (B, C, H, W) float images to (B, num_classes) logits; set to eval mode here and left so.
            batches: uint8 batches, as `BatchLoader.epoch` gives them.
        """
        model.eval()
        num_classes = self.criterion.num_classes
        metrics = ClassificationMetrics(num_classes, self.device)
        num_kept = num_classes if num_classes <= FULL_PROBS_CLASSES else TOP_PROBS
        kept: list[tuple[torch.Tensor, ...]] = []
        num_skipped = num_seen = 0
        interrupted = False
        for batch in self.coordinator.report_failures(prefetch_to_device(batches, self.device)):
            num_skipped += len(batch.bad)
            labels = batch.labels
            count = self.coordinator.sync(len(labels))
            num_seen += count.total
            if len(labels):
                # Not around the loader, whose tensors may be kept for training.
                with torch.inference_mode():
                    images = self.normalizer(batch.images)
                    logits = compute_logits(model, images, self.dtype, flip=self.flip)
                    losses = self.criterion.per_sample(logits, labels)
                    metrics.update(logits, labels, losses)
                    # Ranked by logit, as the confusion matrix is: probabilities that round to 1 would tie.
                    classes = logits.topk(num_kept, dim=1).indices
                    probs = (logits / self.temperature).softmax(dim=1).gather(1, classes)
                    kept.append((batch.indices, labels, classes, probs, losses, logits))
            if num_seen * num_classes > MAX_LOGITS:
                kept = [(*columns, logits[:, :0]) for *columns, logits in kept]
            self.on_batch(count.total)
            if self.coordinator.received is not None:
                interrupted = True
                break
        for sums in metrics.state():
            self.world.all_reduce_(sums)
        num_images, num_skipped = map(
            int, self.world.all_reduce_scalars([sum(len(labels) for _, labels, *_ in kept), num_skipped])
        )
        if num_images == 0 and num_skipped and not interrupted:
            raise RunError(
                f"none of {num_skipped} images to evaluate could be read\n"
                "  mend or replace the files; warnings above name the first of them"
            )
        return Evaluation(
            metrics=metrics.compute(),
            per_class=metrics.per_class(),
            predictions=_merge(self.world.gather(_concatenate(kept, num_kept))),
            num_images=num_images,
            num_skipped=num_skipped,
            interrupted=interrupted,
            temperature=self.temperature,
        )


def compute_logits(model: nn.Module, images: torch.Tensor, dtype: torch.dtype, *, flip: bool) -> torch.Tensor:
    """Return (B, num_classes) float32 of normalised (B, C, S, S) images, with matrix products in `dtype`.

    `flip`: the mean of the logits of each image and of its mirror image.
    """
    with autocast(images.device, dtype):
        logits = model(images).float()
        return (logits + model(images.flip(3)).float()) / 2 if flip else logits


def _merge(parts: list[Predictions]) -> Predictions:
    """Merge the predictions of all ranks into the order of the split, in which each of them has its own."""
    if len(parts) == 1:
        return parts[0]
    if not parts:  # not rank 0
        return _concatenate([], 1)
    parts = [part for part in parts if len(part.indices)] or parts[:1]
    order = np.argsort(np.concatenate([part.indices for part in parts]), kind="stable")
    columns = {
        column.name: np.concatenate([getattr(part, column.name) for part in parts])[order]
        for column in fields(Predictions)
    }
    return Predictions(**columns)


def _concatenate(kept: list[tuple[torch.Tensor, ...]], num_kept: int) -> Predictions:
    if not kept:
        ids, row = np.zeros((0,), np.int64), np.zeros((0, num_kept), np.float32)
        return Predictions(ids, ids, row.astype(np.int64), row, row[:, 0], row)
    return Predictions(*(torch.cat(column).cpu().numpy() for column in zip(*kept, strict=True)))
