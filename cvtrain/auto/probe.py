"""What a look at a candidate tells: its size, its speed, and how well a regression on its features does."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cvtrain.auto.candidates import Candidate
from cvtrain.config.schema.root import Config
from cvtrain.data.sources.source import Splits, SplittableSource
from cvtrain.distributed.process_group import SINGLE_PROCESS
from cvtrain.models.backbone import pool_features
from cvtrain.models.dry_run import evaluation_mode
from cvtrain.models.logistic_regression import cross_validated_accuracy
from cvtrain.runtime.progress import Progress
from cvtrain.training.build import build_network, image_shape, init_runtime, resolve_preprocessing
from cvtrain.training.cpu_precision import choose_run_precision
from cvtrain.training.features import Backbone
from cvtrain.training.head_start import compute_split_features
from cvtrain.training.step_speed import seconds_per_image

# Images of the first look at least, and the share of the training images in each round.
MIN_IMAGES = 100
SHARES = (0.1, 0.3)
LATENCY_REPEATS = 5
STEP_IMAGES = 8


@dataclass
class Probed:
    """Facts about a candidate.

    Attributes:
        arch, license, overrides: of the candidate.
        params_m: million parameters.
        latency_ms: of one image, through the network alone.
        image_size: that the weights want, in pixels.
        can_shrink: it takes smaller images as it is.
        forward_seconds, step_seconds: of one image, through the network, and in a training step beyond that; without
            decoding.
        seconds_per_image: from the file to its features, batches at a time.
        num_images: training images whose features were looked at.
        accuracy: of the regression on them, cross-validated, 0..1; None: too few images for that.
        seconds: since the command began, when this was known.
    """

    arch: str
    license: str
    overrides: tuple[str, ...]
    params_m: float
    latency_ms: float
    image_size: int
    can_shrink: bool
    forward_seconds: float
    step_seconds: float
    seconds_per_image: float = 0.0
    num_images: int = 0
    accuracy: float | None = None
    seconds: float = 0.0

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Probed":
        """Undo `to_plain`."""
        return cls(**{**values, "overrides": tuple(values["overrides"])})

    def to_plain(self) -> dict[str, Any]:
        return asdict(self) | {"overrides": list(self.overrides)}


class Probe:
    """A candidate that is loaded, and the features computed so far.

    Args:
        config: a training command with the candidate's network.
        splits: the images.
        now: the clock, in seconds.

    Raises:
        ConfigError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self, candidate: Candidate, config: Config, splits: Splits, *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._source: SplittableSource = splits.train  # type: ignore[assignment]  # every training source can be taken from
        self._num_classes, self._now = len(splits.classes), now
        device = init_runtime(config, SINGLE_PROCESS)
        built, model, normalizer = build_network(config, self._num_classes, device, None, SINGLE_PROCESS)
        dtype = choose_run_precision(config, model, normalizer, device, None, SINGLE_PROCESS)
        self._config = resolve_preprocessing(config, built, None)
        self._backbone = Backbone(model, built.head, normalizer, device, dtype)
        self._features: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._order = stratified_order(splits.train.labels)
        params = sum(parameter.numel() for parameter in model.parameters())
        forward, step = self._speed()
        self.found = Probed(
            candidate.arch,
            candidate.license,
            candidate.overrides,
            params / 1e6,
            self._latency(),
            image_size=self._config.data.image_size,
            can_shrink=built.convolutional,
            forward_seconds=forward,
            step_seconds=step,
        )

    def _latency(self) -> float:
        images = torch.zeros(1, *image_shape(self._config), dtype=torch.uint8)
        times = []
        with evaluation_mode(self._backbone.model):
            for _ in range(LATENCY_REPEATS):
                began = self._now()
                self._backbone(images).cpu()
                times.append(self._now() - began)
        return 1000 * float(np.median(times))

    def _speed(self) -> tuple[float, float]:
        """Return the seconds per image of a forward pass, and of a training step beyond that."""
        backbone = self._backbone
        images = torch.zeros(STEP_IMAGES, *image_shape(self._config), dtype=torch.uint8)
        inputs, network = backbone.normalizer(images.to(backbone.device)), copy.deepcopy(backbone.model)
        network.requires_grad_(True)
        step, forward = (
            seconds_per_image(network, inputs, backbone.dtype, trains=trains, now=self._now) for trains in (True, False)
        )
        return forward, max(0.0, step - forward)

    def look(self, share: float, progress: Progress) -> Probed:
        """Compute the features of `share` of the training images, and cross-validate a regression on them."""
        wanted = min(len(self._order), max(MIN_IMAGES, round(share * len(self._order))))
        new = np.sort(self._order[self.found.num_images : wanted])
        if len(new):
            began = self._now()
            with evaluation_mode(self._backbone.model):
                features, labels = compute_split_features(
                    self._config, self._backbone, self._source.take(new), len(new), progress
                )
            self.found.seconds_per_image = (self._now() - began) / len(new)
            self._features.append(pool_features(features))
            self._labels.append(labels)
            self.found.num_images = wanted
        self.found.accuracy = cross_validated_accuracy(
            torch.cat(self._features), torch.cat(self._labels), self._num_classes
        )
        return self.found


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """Return (N,) int64, an order of images of which each beginning has about the same share of every class.

    Args:
        labels: (N,) int64 class ids. The order depends on nothing else.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    share = (np.arange(len(labels)) - starts + 0.5) / np.repeat(counts, counts)
    return by_class[np.argsort(share, kind="stable")]
