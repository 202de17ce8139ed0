"""One trial on this machine: its command line, its folder, and the outcome that it leaves there."""

import json
import math
import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.config.overrides import override
from cvtrain.config.redact import redact
from cvtrain.config.resume import SUMMARY, is_finished
from cvtrain.loggers.files import METRICS_JSONL, read_metrics
from cvtrain.sweep.search import Search, fold_override
from cvtrain.sweep.spec import Metric

TRIALS = "trials"
CONSOLE = "console.log"


@dataclass
class RunningTrial:
    """A trial that a worker runs.

    Attributes:
        handle: Optuna's.
        console_start: where what it prints now begins in its console.log.
        fold: of its runs, the one that is running; 0 for a trial of one run.
        steps: optimizer steps of its evaluations so far.
    """

    handle: Any
    number: int
    values: dict[str, Any]
    folder: Path
    console_start: int = 0
    steps: list[int] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    last: float | None = None
    best: float | None = None
    fold: int = 0

    def count(self, step: int) -> int:
        """Return the number, from 1, of the evaluation at `step`; one that is repeated after a resume keeps its own."""
        self.steps = [earlier for earlier in self.steps if earlier < step] + [step]
        return len(self.steps)

    def observe(self, value: float, metric: Metric) -> None:
        self.last = value
        if math.isfinite(value) and (self.best is None or (value > self.best) == metric.maximize):
            self.best = value


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial that ended by itself.

    Attributes:
        value: best of its metric, of folds their mean; None: it logged none.
        step: where it was best; None of folds.
        folds: the value of each fold.
    """

    value: float | None
    step: int | None
    is_pruned: bool
    folds: tuple[float, ...] = ()


def trial_folder(folder: Path, number: int) -> Path:
    return folder / TRIALS / f"{number:04d}"


def run_folder(search: Search, number: int, fold: int) -> Path:
    """Return the run folder of a trial, or of one of its folds."""
    folder = trial_folder(search.folder, number)
    return folder if search.folds is None else folder / f"fold{fold}"


def next_fold(search: Search, number: int) -> int | None:
    """Return the first fold of a trial that is not finished; None: all are. A trial of one run has the fold 0."""
    return next((fold for fold in range(search.folds or 1) if not is_finished(run_folder(search, number, fold))), None)


def trial_overrides(search: Search, values: dict[str, Any]) -> list[str]:
    """Return the settings of a trial: those of all trials, then its own."""
    return [*search.fixed, *(override(key, value) for key, value in values.items())]


def trial_arguments(
    search: Search, number: int, values: dict[str, Any], *, is_resumed: bool, fold: int = 0
) -> list[str]:
    """Return the command line of a trial, or of one of its folds, after `cvtrain`."""
    folder = run_folder(search, number, fold)
    overrides = [*trial_overrides(search, values), *logger_overrides(search, number, values)]
    if not any(token.lstrip("+").startswith("plots=") for token in overrides):
        overrides.append("plots=false")  # they take longer than a short trial, and the search has its own
    if search.folds is not None:
        overrides.append(fold_override(fold, search.folds))
    resumed = ["resume=auto"] if is_resumed else []
    return [*search.flags, *overrides, override("hydra.run.dir", str(folder)), *resumed]


def logger_overrides(search: Search, number: int, values: dict[str, Any]) -> list[str]:
    """Return W&B's group of the trials, which is the study's name, and a name for each, where the user gives none."""
    wandb = search.base.logger.wandb
    if wandb is None or "logger" in values:
        return []
    named = {token.lstrip("+~").partition("=")[0] for token in search.given} | set(values)
    wanted = {"logger.wandb.group": search.name, "logger.wandb.name": f"{search.name}-{number:04d}"}
    have = {"logger.wandb.group": wandb.group, "logger.wandb.name": wandb.name}
    return [override(key, value) for key, value in wanted.items() if have[key] is None and key not in named]


def reproducing_command(search: Search, overrides: Sequence[str]) -> str:
    """Return the command that runs a trial again by itself, quoted for a shell."""
    folds = [] if search.folds is None else [f"folds={search.folds}"]
    return shlex.join(["cvtrain", *search.flags, *overrides, *folds])


def read_outcome(folder: Path, metric: Metric) -> Outcome:
    """Read the outcome of a finished trial from its run folder: the best value of its evaluations, as W&B counts."""
    found = [(row[metric.name], row["step"]) for row in _rows(folder) if row.get(metric.name) is not None]
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    is_pruned = str(summary.get("end_reason", "")).startswith("pruned")
    if not found or not summary:
        return Outcome(None, None, is_pruned)
    # The earliest of equals, as best.pt is.
    value, step = (max if metric.maximize else min)(found, key=lambda item: item[0])
    return Outcome(float(value), int(step), is_pruned)


def read_trial(search: Search, number: int) -> Outcome:
    """Read the outcome of a trial, whose value is the mean of its folds where it has some."""
    metric = search.spec.metric
    found = [read_outcome(run_folder(search, number, fold), metric) for fold in range(search.folds or 1)]
    if search.folds is None:
        return found[0]
    values = tuple(outcome.value for outcome in found if outcome.value is not None)
    if len(values) < len(found):
        return Outcome(None, None, False)
    return Outcome(math.fsum(values) / len(values), None, False, values)


def evaluation_steps(folder: Path, metric: Metric) -> list[int]:
    """Return the steps of a trial's evaluations before it was interrupted."""
    return [int(row["step"]) for row in _rows(folder) if metric.name in row]


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(folder / METRICS_JSONL)
    except (OSError, ValueError):
        return []


def describe_failure(exit_code: int, console: Path, offset: int) -> str:
    """Return why a trial failed, in a few lines: the signal that ended it, else the last error that it printed.

    Args:
        exit_code: negative for a signal.
        console: file of what the trial printed.
        offset: where this start of the trial begins in it.
    """
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as by the system when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    try:
        with console.open("rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    return redact(last_words(text) or f"exit code {exit_code}")


def last_words(text: str) -> str:
    """Return the error at the end of what a run printed: its last `error:` lines, or the last of a traceback."""
    errors = re.findall(r"^error: (.*(?:\n  .*)*)", text, re.MULTILINE)
    if errors:
        return "\n".join(errors[-3:])
    if "Traceback (most recent call last)" in text:
        lines = text[text.rindex("Traceback (most recent call last)") :].splitlines()
        ends = [number for number, line in enumerate(lines[1:], 1) if line and not line.startswith((" ", "\t"))]
        return "\n".join(lines[ends[0] : ends[0] + 3]).strip() if ends else lines[-1]
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
