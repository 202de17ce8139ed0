"""`Reporter`: what the loop logs: rows for the loggers, one line per epoch and evaluation, the progress bar."""

import logging
from typing import Protocol

from cvtrain.loggers.base import RunLogger
from cvtrain.runtime.progress import ProgressBar
from cvtrain.training.state import TrainState

log = logging.getLogger(__name__)


class SizedLoader(Protocol):
    """What the progress bar needs of a loader."""

    @property
    def num_images(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


class Reporter:
    """Logs the figures of a run.

    Args:
        logger: gets all figures.
        progress: shows the latest.
        epochs: of the whole run, for the lines.
    """

    def __init__(self, logger: RunLogger, progress: ProgressBar, *, epochs: int) -> None:
        self.logger = logger
        self.progress = progress
        self.epochs = epochs

    def start_epoch(self, state: TrainState, loader: SizedLoader) -> None:
        """Begin a bar for what is left of the epoch."""
        done = state.batch * loader.batch_size
        self.progress.start(f"epoch {state.epoch + 1}/{self.epochs}", loader.num_images, done)

    def log_steps(self, state: TrainState, values: dict[str, float]) -> None:
        """Log the figures since the last point: `train/...` and `perf/...`."""
        self.logger.log_metrics(state.step, state.finished_epoch, values)
        self.progress.show(
            f"loss {values['train/loss']:.4f}  accuracy {values['train/accuracy']:.4f}  "
            f"lr {values['train/lr']:.2e}  {values.get('perf/images_per_second', 0):,.0f} images/s"
        )

    def log_epoch(self, state: TrainState, values: dict[str, float]) -> None:
        """Log the training figures of an epoch, `train/epoch_...`; an epoch without steps has none."""
        if values:
            self.logger.log_metrics(state.step, state.finished_epoch, values)
            text = ", ".join(f"{name.removeprefix('train/epoch_')} {value:.4f}" for name, value in values.items())
            log.info("%s: train %s", self._position(state), text)

    def log_evaluation(self, state: TrainState, *, is_best: bool) -> None:
        """Log `state.metrics`."""
        self.logger.log_metrics(state.step, state.finished_epoch, state.metrics)
        log.info(
            "%s: val loss %.4f, accuracy %.4f%s",
            self._position(state),
            state.metrics["val/loss"],
            state.metrics["val/accuracy"],
            " (best so far)" if is_best else "",
        )

    def _position(self, state: TrainState) -> str:
        return f"epoch {state.finished_epoch + 1}/{self.epochs}, step {state.step}"
