"""`TrialChannel`: sends a trial's metric to its search, and receives whether to stop."""

import json
import os
import socket
from collections.abc import Mapping

from cvtrain.loggers.base import Logger

# Set by the search: {"fd": number of an open socket, "trial": number, "metric": name}.
VARIABLE = "CVTRAIN_TRIAL_CHANNEL"


class TrialChannel(Logger):
    """Sends each value of the search's metric, and waits for its answer: continue, or stop.

    The search compares the value with the other trials' before it answers, so a trial is pruned at the very evaluation
    that showed it to be hopeless.

    Args:
        connection: stream socket to the search.
        trial: the trial's number; answers to another one, which ended without hearing them, are passed over.
        metric: name of the metric that the search optimizes.
    """

    name = "search"

    def __init__(self, *, connection: socket.socket, trial: int, metric: str) -> None:
        self.stop_requested = False
        self._connection = connection
        self._trial = trial
        self._metric = metric
        self._answers = connection.makefile("r", encoding="utf-8")

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        if self._metric not in values:
            return
        row = {"trial": self._trial, "step": int(step), "epoch": int(epoch) + 1, "value": float(values[self._metric])}
        self._connection.sendall((json.dumps(row) + "\n").encode())
        for line in self._answers:
            answer = json.loads(line)
            if answer["trial"] == self._trial:
                self.stop_requested = self.stop_requested or bool(answer["stop"])
                return
        raise ConnectionError("the search that started this trial is gone")

    def finish(self, exit_code: int) -> None:
        self._answers.close()
        self._connection.close()


def open_trial_channel() -> TrialChannel:
    """Return the channel of this process, which a search has started.

    Raises:
        OSError: the socket is not open here, as in a process that the trial has started in its turn.
    """
    settings = json.loads(os.environ[VARIABLE])
    connection = socket.socket(fileno=os.dup(settings["fd"]))
    return TrialChannel(connection=connection, trial=settings["trial"], metric=settings["metric"])
