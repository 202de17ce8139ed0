"""Display of a running search: a live table in a terminal, nothing but the log lines elsewhere."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from cvtrain.config.errors import format_value
from cvtrain.runtime.console import get_console
from cvtrain.sweep.spec import Metric, SweepSpec
from cvtrain.sweep.trial import RunningTrial

if TYPE_CHECKING:
    from rich.console import Group

log = logging.getLogger(__name__)

# Finished trials that the live table shows at most.
ROWS = 12
UPDATE_SECONDS = 0.2
# Lines of a terminal that are not rows: the title, the head and the ends of the table, and the log lines above it.
LINES_AROUND = 9
COLUMNS = ("trial", "state", "metric", "best", "time", "parameters")
# Columns that a narrow terminal omits, the most useful first, and the least useful width of the parameters.
SPARED = ("parameters", "best", "time")
PARAMETERS_WIDTH = 16
GAP = 3
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class Display(Protocol):
    """Shows the state of a search."""

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None: ...
    def close(self) -> None: ...


class NullDisplay:
    """Does nothing: each trial has its log lines."""

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None: ...
    def close(self) -> None: ...


class LiveTable:
    """A table that is updated a few times a second below the log lines.

    It has a line per trial, as many as the terminal has room for: running trials first, then the best, then the newest
    that have ended. A narrow terminal gets fewer columns.
    """

    def __init__(self, title: str, spec: SweepSpec, limit: int) -> None:
        from rich.live import Live

        self._title = title
        self._metric = spec.metric
        self._names = short_names([parameter.key for parameter in spec.parameters if parameter.varies()])
        self._limit = limit
        self._updated_at = 0.0
        self._live = Live(console=get_console(), auto_refresh=False, transient=True)
        self._live.start()

    def update(self, running: list[RunningTrial], trials: list[FrozenTrial]) -> None:
        if time.monotonic() - self._updated_at >= UPDATE_SECONDS:
            self._live.update(self._table(running, trials, *get_console().size), refresh=True)
            self._updated_at = time.monotonic()

    def close(self) -> None:
        self._live.stop()

    def _table(self, running: list[RunningTrial], trials: list[FrozenTrial], width: int, height: int) -> "Group":
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        finished = [trial for trial in trials if trial.state.is_finished()]
        title = f"{self._title}: {len(finished)} of {self._limit} trials, {len(running)} running"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        rows = list(self._rows(running, finished, max(1, height - LINES_AROUND)))
        headings = {name: self._metric.name if name == "metric" else name for name in COLUMNS}
        widths = {name: max(len(headings[name]), *(len(row[name]) for row, _ in rows)) for name in COLUMNS}
        columns = columns_for(width, widths)
        for name in columns:
            is_text = name in ("state", "parameters")
            table.add_column(
                headings[name],
                justify="left" if is_text else "right",
                overflow="ellipsis",
                no_wrap=True,
                min_width=None if name == "parameters" else widths[name],
            )
        for cells, style in rows:
            table.add_row(*(Text(cells[name]) for name in columns), style=style)
        return Group(Text(title, overflow="ellipsis", no_wrap=True, style="italic"), table)

    def _rows(
        self, running: list[RunningTrial], finished: list[FrozenTrial], room: int
    ) -> Iterator[tuple[dict[str, str], str]]:
        """Yield cells by column and their colour, for no more trials than there is room for."""
        shown_running = running[:room]
        best = best_trial(finished, self._metric)
        left = min(ROWS, room - len(shown_running))
        shown = finished[-left:] if left > 0 else []
        if best is not None and shown and best not in shown:
            shown = [best, *shown[1:]]
        for trial in shown:
            is_best = best is not None and trial.number == best.number
            value = trial.value if trial.state is TrialState.COMPLETE else last_value(trial)
            cells = {
                "trial": str(trial.number),
                "state": STATES[trial.state],
                "metric": _number(value),
                "best": "best" if is_best else "",
                "time": duration(trial.duration.total_seconds() if trial.duration else 0.0),
                "parameters": self._parameters(trial.user_attrs.get("run", {}).get("values", trial.params)),
            }
            yield cells, "bold green" if is_best else "red" if trial.state is TrialState.FAIL else ""
        for each in shown_running:
            cells = {
                "trial": str(each.number),
                "state": "running",
                "metric": _number(each.last),
                "best": _number(each.best),
                "time": duration(time.monotonic() - each.begun),
                "parameters": self._parameters(each.values),
            }
            yield cells, "cyan"

    def _parameters(self, values: dict[str, Any]) -> str:
        return describe_values({name: values[key] for key, name in self._names.items() if key in values})


def build_display(title: str, spec: SweepSpec, limit: int) -> Display:
    """Return a live table if the console is a terminal, else a no-op."""
    return LiveTable(title, spec, limit) if get_console().is_terminal else NullDisplay()


def columns_for(width: int, widths: dict[str, int]) -> list[str]:
    """Return the columns that a terminal has room for, given the width of each."""
    needed = {name: min(widths[name], PARAMETERS_WIDTH) if name == "parameters" else widths[name] for name in COLUMNS}
    taken = [name for name in COLUMNS if name not in SPARED]
    for name in SPARED:
        if sum(needed[each] + GAP for each in (*taken, name)) - GAP < width:
            taken.append(name)
    return [name for name in COLUMNS if name in taken]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key where it is unique: `lr` for `optimizer.lr`."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def duration(seconds: float) -> str:
    """Return seconds as `48 s`, `12:05` or `3:20:15`."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def best_trial(trials: list[FrozenTrial], metric: Metric) -> FrozenTrial | None:
    """Return the best of the completed trials, the earliest of equals."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    if not done:
        return None
    return (max if metric.maximize else min)(done, key=lambda trial: trial.value or 0.0)


def last_value(trial: FrozenTrial) -> float | None:
    """Return the last value of a trial."""
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None


def describe_values(values: dict[str, Any]) -> str:
    """Return values as `optimizer.lr=0.00312 model.hidden=[64]`, numbers with four digits."""
    return " ".join(f"{key}={short(value)}" for key, value in values.items())


def short(value: Any) -> str:
    """Return a value as text; numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
