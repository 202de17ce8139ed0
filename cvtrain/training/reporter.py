"""`Reporter`: what the loop logs: rows for the loggers, a row per epoch and evaluation, the progress bar."""

import logging
import time
from typing import Protocol

from cvtrain.loggers.base import RunLogger
from cvtrain.runtime.progress import EpochTable, Progress, format_duration
from cvtrain.training.meters import ThroughputMeter
from cvtrain.training.state import TrainState

log = logging.getLogger(__name__)

# An epoch that takes longer gets an estimate of the run's time after its first figures.
LONG_EPOCH_SECONDS = 60.0


class SizedLoader(Protocol):
    """What the progress bar needs of a loader."""

    @property
    def num_images(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def num_batches(self) -> int: ...


class Reporter:
    """Logs the figures of a run.

    Args:
        logger: gets all figures.
        progress: shows the latest.
        stopwatch: counts images and seconds of training.
        epochs: of the whole run.
        total_steps: of the whole run.
        slow_epochs: the first epochs, whose time says nothing about that of the rest.
    """

    def __init__(
        self,
        logger: RunLogger,
        progress: Progress,
        stopwatch: ThroughputMeter,
        *,
        epochs: int,
        total_steps: int,
        slow_epochs: int = 0,
    ) -> None:
        self.logger = logger
        self.progress = progress
        self.stopwatch = stopwatch
        self.total_steps = total_steps
        self.slow_epochs = slow_epochs
        self._table = EpochTable(epochs)
        self._epochs = epochs
        self._row: dict[str, float] = {}  # of the epoch that is over, until it is evaluated
        self._lr: dict[str, float] = {}
        self._batch_size = self._steps_per_epoch = 0
        self._row_since = self._epoch_since = time.perf_counter()
        self._counted_before = (0, 0.0)
        self._epoch_first_step = 0
        self._has_estimate = False

    def start_epoch(self, state: TrainState, loader: SizedLoader) -> None:
        """Begin a bar for what is left of the epoch."""
        self._batch_size, self._steps_per_epoch = loader.batch_size, loader.num_batches
        self._row_since = self._epoch_since = time.perf_counter()
        self._epoch_first_step = state.step
        self._counted_before = self.stopwatch.num_images, self.stopwatch.train_seconds
        self.progress.start(
            f"epoch {state.epoch + 1}/{self._epochs}", loader.num_images, state.batch * loader.batch_size
        )

    def log_steps(self, state: TrainState, values: dict[str, float]) -> None:
        """Log the figures since the last point: `train/...` and `perf/...`."""
        self.logger.log_metrics(state.step, state.finished_epoch, values)
        self._lr = {"train/lr": values["train/lr"]}
        rate = values.get("perf/images_per_second", 0.0)
        text = (
            f"loss {values['train/loss']:.4f}  acc {values['train/accuracy']:.3f}  "
            f"lr {values['train/lr']:.2e}  {rate:,.0f} images/s"
        )
        if rate > 0 and state.epoch >= self.slow_epochs:
            seconds_per_step = self._batch_size / rate
            left = (self.total_steps - state.step) * seconds_per_step
            text += f"  run {format_duration(left)} left"
            if self._steps_per_epoch * seconds_per_step > LONG_EPOCH_SECONDS:
                self._estimate(left, f"{rate:,.0f} images/s, without evaluations")
        self.progress.set_text(text)

    def log_epoch(self, state: TrainState, values: dict[str, float]) -> None:
        """Log the training figures of an epoch, `train/epoch_...`; an epoch without steps has none."""
        if values:
            self.logger.log_metrics(state.step, state.finished_epoch, values)
            images, seconds = self.stopwatch.num_images, self.stopwatch.train_seconds
            images, seconds = images - self._counted_before[0], seconds - self._counted_before[1]
            self._row = dict(values)
            if seconds > 0:
                self._row["perf/images_per_second"] = images / seconds

    def log_evaluation(self, state: TrainState, *, is_best: bool) -> None:
        """Log `state.metrics`, in the row of the epoch if it is over."""
        self.logger.log_metrics(state.step, state.finished_epoch, state.metrics)
        self._log_row(state, state.metrics, is_best=is_best)

    def end_epoch(self, state: TrainState) -> None:
        """Log the row of an epoch that was not evaluated."""
        if self._row:
            self._log_row(state, {}, is_best=False)

    def _log_row(self, state: TrainState, metrics: dict[str, float], *, is_best: bool) -> None:
        now = time.perf_counter()
        steps = state.step - self._epoch_first_step
        if self._row and steps and state.finished_epoch >= self.slow_epochs:
            seconds = now - self._epoch_since
            left = (self.total_steps - state.step) * seconds / steps
            words = "1 step and its" if steps == 1 else f"{steps:,} steps and their"
            self._estimate(left, f"{format_duration(seconds)} for {words} evaluation")
        row = self._row | self._lr | metrics
        for line in self._table.lines(
            state.finished_epoch + 1, state.step, row, seconds=now - self._row_since, is_best=is_best
        ):
            log.info("%s", line)
        self._row, self._row_since = {}, now

    def _estimate(self, seconds_left: float, reason: str) -> None:
        """Log once when the run will be done."""
        if not self._has_estimate and seconds_left > 0:
            log.info("time left: about %s (%s)", format_duration(seconds_left), reason)
        self._has_estimate = True
