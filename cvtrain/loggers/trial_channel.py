"""`TrialChannel`: sends a trial's metric to its search, and receives whether to stop."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cvtrain.loggers.base import Logger

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


class TrialChannel(Logger):
    """Sends each value of the search's metric, and waits for its answer: continue, or stop.

    The search compares the value with the other trials' before it answers, so a trial is pruned at the very evaluation
    that showed it to be hopeless.

    Args:
        connection: two-way connection to the search.
        metric: name of the metric that the search optimizes.
    """

    name = "search"

    def __init__(self, *, connection: "Connection", metric: str) -> None:
        self.stop_requested = False
        self._connection = connection
        self._metric = metric

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Send the metric's value, if it is among `values`.

        Raises:
            ConnectionError: the search has ended.
        """
        if self._metric not in values:
            return
        try:
            self._connection.send((int(step), float(values[self._metric])))
            self.stop_requested |= bool(self._connection.recv())
        except EOFError as error:
            raise ConnectionError("the search that started this trial has ended") from error

    def finish(self, exit_code: int) -> None:
        self._connection.close()


# The channel of this process; None unless a search has started it.
_channel: TrialChannel | None = None


def open_trial_channel(connection: "Connection", metric: str) -> None:
    """Connect the run of this process to its search."""
    global _channel
    _channel = TrialChannel(connection=connection, metric=metric)


def current_trial_channel() -> TrialChannel | None:
    """Return the channel of this process, or None if no search has started it."""
    return _channel
