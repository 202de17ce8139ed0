"""One trial as this machine runs it: its command, its folder, and what its folder says when it has ended."""

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
from cvtrain.config.resume import SUMMARY
from cvtrain.loggers.files import METRICS_JSONL, read_metrics
from cvtrain.sweep.search import Search
from cvtrain.sweep.spec import Metric

TRIALS = "trials"
CONSOLE = "console.log"


@dataclass
class RunningTrial:
    """A trial that a worker has in hand. `steps`: optimizer steps of its evaluations so far."""

    handle: Any
    number: int
    values: dict[str, Any]
    folder: Path
    begun: float = field(default_factory=time.monotonic)
    steps: list[int] = field(default_factory=list)
    last: float | None = None
    best: float | None = None
    was_told_to_stop: bool = False

    def count(self, step: int) -> int:
        """Which evaluation, from 1, the one at `step` is; one that is done again after a restart keeps its number."""
        self.steps = [earlier for earlier in self.steps if earlier < step] + [step]
        return len(self.steps)

    def observe(self, value: float, metric: Metric) -> None:
        self.last = value
        if math.isfinite(value) and (self.best is None or (value > self.best) == metric.maximize):
            self.best = value


@dataclass(frozen=True)
class Outcome:
    """What a trial that ended by itself left. `value`: the best of its metric, at `step`; None: it logged none."""

    value: float | None
    step: int | None
    pruned: bool


def trial_folder(folder: Path, number: int) -> Path:
    return folder / TRIALS / f"{number:04d}"


def trial_overrides(search: Search, values: dict[str, Any]) -> list[str]:
    """The settings of a trial: those of all trials, then its own."""
    return [*search.fixed, *(override(key, value) for key, value in values.items())]


def trial_arguments(search: Search, number: int, values: dict[str, Any], *, again: bool) -> list[str]:
    """The command line of a trial, after `cvtrain`."""
    folder = trial_folder(search.folder, number)
    overrides = [*trial_overrides(search, values), *logger_overrides(search, number, values)]
    if not any(token.lstrip("+").startswith("plots=") for token in overrides):
        overrides.append("plots=false")  # they take longer than a short trial, and the search draws its own
    arguments = [*search.flags, *overrides]
    arguments.append(override("hydra.run.dir", str(folder)))
    if again:
        arguments.append("resume=auto")
    return arguments


def logger_overrides(search: Search, number: int, values: dict[str, Any]) -> list[str]:
    """The name of the study as W&B's group of its runs, and a name for each, where the user gives none."""
    wandb = search.base.logger.wandb
    if wandb is None or "logger" in values:
        return []
    named = {token.lstrip("+~").partition("=")[0] for token in search.given} | set(values)
    wanted = {"logger.wandb.group": search.name, "logger.wandb.name": f"{search.name}-{number:04d}"}
    have = {"logger.wandb.group": wandb.group, "logger.wandb.name": wandb.name}
    return [override(key, value) for key, value in wanted.items() if have[key] is None and key not in named]


def reproducing_command(search: Search, overrides: Sequence[str]) -> str:
    """A trial as a command of its own, to be pasted into a shell."""
    return shlex.join(["cvtrain", *search.flags, *overrides])


def read_outcome(folder: Path, metric: Metric) -> Outcome:
    """What the run folder of a finished trial says: the best value over its evaluations, as W&B counts it."""
    try:
        rows = read_metrics(folder / METRICS_JSONL)
    except (OSError, ValueError):
        rows = []
    found = [(row[metric.name], row["step"]) for row in rows if row.get(metric.name) is not None]
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = {}
    pruned = str(summary.get("end_reason", "")).startswith("pruned")
    if not found or not summary:
        return Outcome(None, None, pruned)
    # The earliest of equals, as best.pt is.
    value, step = (max if metric.maximize else min)(found, key=lambda item: item[0])
    return Outcome(float(value), int(step), pruned)


def evaluation_steps(folder: Path, metric: Metric) -> list[int]:
    """The steps of a trial's evaluations before it was cut."""
    try:
        rows = read_metrics(folder / METRICS_JSONL)
    except (OSError, ValueError):
        return []
    return [int(row["step"]) for row in rows if metric.name in row]


def describe_failure(exit_code: int, console: Path, offset: int) -> str:
    """Why a trial failed, in a line or a few: by the signal that ended it, else by its last words.

    Args:
        exit_code: as subprocess has it: negative for a signal.
        console: what the trial printed.
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
    """The error at the end of what a run printed: its last `error:` with the lines below, or a traceback's last."""
    told = re.findall(r"^error: (.*(?:\n  .*)*)", text, re.MULTILINE)
    if told:
        return "\n".join(told[-3:])
    if "Traceback (most recent call last)" in text:
        lines = text[text.rindex("Traceback (most recent call last)") :].splitlines()
        ends = [number for number, line in enumerate(lines[1:], 1) if line and not line.startswith((" ", "\t"))]
        return "\n".join(lines[ends[0] : ends[0] + 3]).strip() if ends else lines[-1]
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
