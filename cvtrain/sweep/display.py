"""What a search shows while it runs: a live table in a terminal, a line per trial elsewhere."""

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from cvtrain.config.errors import format_value
from cvtrain.console import get_console
from cvtrain.sweep.spec import Metric
from cvtrain.sweep.trial import RunningTrial

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

# Finished trials that the live table shows, the newest ones, besides the best.
ROWS = 12
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Display(Protocol):
    """What the search tells."""

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None: ...
    def close(self) -> None: ...


class NoTable:
    """Shows nothing: the log line per trial says it."""

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None: ...
    def close(self) -> None: ...


class LiveTable:
    """A table that is drawn anew twice a second; log lines scroll above it."""

    def __init__(self, title: str, metric: Metric, limit: int) -> None:
        from rich.live import Live

        self._title = title
        self._metric = metric
        self._limit = limit
        self._live = Live(console=get_console(), auto_refresh=False, transient=True)
        self._live.start()

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None:
        self._live.update(self._table(running, trials), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _table(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> "Table":
        from rich.table import Table

        finished = [trial for trial in trials if trial.state.is_finished()]
        best = best_trial(finished, self._metric)
        title = f"{self._title}: {len(finished)} of {self._limit} trials, {len(running)} running"
        table = Table(title=title, title_justify="left", expand=False, row_styles=[""])
        for head in ("trial", "state", self._metric.name, "best so far", "time", "parameters"):
            table.add_column(head, justify="left" if head in ("state", "parameters") else "right", overflow="fold")
        shown = finished[-ROWS:]
        if best is not None and best not in shown:
            shown = [best, *shown[1:]]
        for trial in shown:
            is_best = best is not None and trial.number == best.number
            seconds = trial.duration.total_seconds() if trial.duration else 0.0
            value = _number(trial.value if trial.state is TrialState.COMPLETE else last_value(trial))
            style = "bold green" if is_best else "red" if trial.state is TrialState.FAIL else ""
            state = STATES[trial.state]
            row = (str(trial.number), state, value, "best" if is_best else "", f"{seconds:.0f} s", _parameters(trial))
            table.add_row(*row, style=style)
        for each in running:
            seconds = time.monotonic() - each.begun
            values = describe_values(each.values)
            row = (str(each.number), "running", _number(each.last), _number(each.best), f"{seconds:.0f} s", values)
            table.add_row(*row, style="cyan")
        return table


def build_display(title: str, metric: Metric, limit: int) -> Display:
    """A live table if the console is a terminal, else nothing."""
    return LiveTable(title, metric, limit) if get_console().is_terminal else NoTable()


def best_trial(trials: list[FrozenTrial], metric: Metric) -> FrozenTrial | None:
    """The best of the trials that came to their end; the earliest among equals."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    if not done:
        return None
    return (max if metric.maximize else min)(done, key=lambda trial: trial.value or 0.0)


def last_value(trial: FrozenTrial) -> float | None:
    """The last value that a trial told."""
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def describe_values(values: dict[str, Any]) -> str:
    """`optimizer.lr=0.00312 model.hidden=[64]`; numbers short, for people."""
    return " ".join(f"{key}={short(value)}" for key, value in values.items())


def short(value: Any) -> str:
    """A value for people: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def _parameters(trial: FrozenTrial) -> str:
    return describe_values(trial.user_attrs.get("run", {}).get("values", trial.params))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
