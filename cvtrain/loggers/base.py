"""`RunLogger`: the loggers of a run behind one, none of which can stop the training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.config.redact import redact

log = logging.getLogger(__name__)


class Logger:
    """Base of all loggers; a no-op for what a subclass does not keep.

    Methods may raise: `RunLogger` then disables the logger.
    """

    name: str
    # True once the run should end early: see `TrialChannel`.
    stop_requested = False

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Keep one point. `step`: optimizer steps done; `epoch`: counted from 0, shown counted from 1."""

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Keep a PNG or JPEG file under a name such as `val/confusion`."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Keep final and best values of the run."""

    def log_artifact(self, path: Path) -> None:
        """Keep a checkpoint, if the logger's config asks for it."""

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Forget the points after `state()` gave this, if the logger can: the run goes back to a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return what is needed to resume the same run later, such as its id, as JSON values."""
        return {}

    def finish(self, exit_code: int) -> None:
        """Send what is left and close; 0: the run ended well."""


class RunLogger:
    """Forwards every call to all loggers. One that raises is disabled with a warning; the others stay.

    Without loggers it does nothing, which is what processes other than the main one need.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._all = list(loggers)
        self._active = list(loggers)
        self._finished = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loggers that are still on."""
        return tuple(logger.name for logger in self._active)

    @property
    def stop_requested(self) -> bool:
        """True once a logger has asked for the end of the run."""
        return any(logger.stop_requested for logger in self._active)

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Log one point.

        Args:
            step: optimizer steps done.
            epoch: the epoch that the step belongs to, counted from 0; files and pages show it counted from 1.
            values: figures by name, such as `train/loss`; shares as fractions. Names other than step and epoch.
        """
        self._call(lambda logger: logger.log_metrics(step, epoch, values))

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Log a PNG or JPEG file, already written, under a name such as `val/confusion`."""
        self._call(lambda logger: logger.log_image(name, Path(path), step))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log final and best values; nested mappings become dotted names where the logger is flat."""
        clean = redact(values)
        self._call(lambda logger: logger.log_summary(clean))

    def log_artifact(self, path: Path) -> None:
        """Hand a checkpoint to the loggers whose config asks for it (`log_checkpoint`)."""
        self._call(lambda logger: logger.log_artifact(Path(path)))

    def rewind(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Forget what was logged after `state()` gave these, where a logger can."""
        self._call(lambda logger: logger.rewind(states[logger.name]) if logger.name in states else None)

    def state(self) -> dict[str, dict[str, Any]]:
        """Run ids and row counts by logger name, for `build_loggers(state=...)` when the run is resumed."""
        states = {}
        for logger in list(self._active):
            state = self._guard(logger, lambda each: each.state())
            if state:
                states[logger.name] = state
        return states

    def finish(self, exit_code: int = 0) -> None:
        """Close all loggers, also disabled ones; always returns, and a second call does nothing."""
        if self._finished:
            return
        self._finished = True
        for logger in self._all:
            self._guard(logger, lambda each: each.finish(exit_code))

    def _call(self, action: Callable[[Logger], Any]) -> None:
        if self._finished:
            return
        for logger in list(self._active):
            self._guard(logger, action)

    def _guard(self, logger: Logger, action: Callable[[Logger], Any]) -> Any:
        try:
            return action(logger)
        except Exception as error:
            # A second failure, say of finish after log_metrics, is no news.
            if logger in self._active:
                self._active.remove(logger)
                warn_disabled(logger.name, error)
            return None


def warn_disabled(name: str, error: BaseException) -> None:
    """Warn once that a logger is disabled; the traceback is logged at level DEBUG."""
    log.warning("logger %s is disabled, training continues: %s: %s", name, type(error).__name__, error)
    log.debug("logger %s failed here", name, exc_info=error)
