"""The figures of several runs that differ in the seed or in the fold: mean, spread and interval."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.config.repeats import Repeats
from cvtrain.config.text import display_text, escape_formula
from cvtrain.report.json_file import write_json
from cvtrain.report.multirun import Job, read_jobs
from cvtrain.runtime.console import display_path
from cvtrain.runtime.files import atomic_write

RUNS, SUMMARY = "runs.csv", "summary.json"
# Of a split, the figures that the console shows; summary.json has all.
SHOWN = ("accuracy", "macro_f1", "loss")
MEANING = {
    "seeds": "95 % confidence interval of the mean over seeds (Student's t): what is luck of the seed; other images "
    "would add to it",
    "folds": "95 % confidence interval of the mean over folds (Student's t), with the correction of Nadeau and Bengio "
    "(2003), since folds share most of their training images",
}


@dataclass(frozen=True)
class Spread:
    """Figures of one metric over runs.

    Attributes:
        std: sample standard deviation; None of a single run, as low and high.
        low, high: 95 % interval of the mean.
    """

    runs: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def spread_of(values: Sequence[float], *, overlap: float = 0.0) -> Spread:
    """Return mean, standard deviation and 95 % interval of the mean, by Student's t with n - 1 degrees of freedom.

    The half width is t * std * sqrt(1 / n + overlap).

    Args:
        values: of n runs.
        overlap: images that score over images that train, of runs that share training images (Nadeau and Bengio
            2003, "Inference for the generalization error"): 1 / (k - 1) for k folds; 0 for independent runs.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Spread(count, mean)
    from scipy.stats import t

    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * std * math.sqrt(1 / count + overlap)
    return Spread(count, mean, std, mean - half, mean + half)


def overlap_of(repeats: Repeats) -> float:
    """Return `overlap` of `spread_of` for runs that a command repeats."""
    return 1 / (repeats.count - 1) if repeats.word == "folds" else 0.0


def write_repeats(folder: Path, repeats: Repeats) -> list[str]:
    """Write runs.csv and summary.json of the runs in `folder`; return lines for the console, none without runs.

    Runs that have not come to their end are in the table, and not in the figures.

    Raises:
        OSError: the files cannot be written.
    """
    jobs = read_jobs(folder)
    if not jobs:
        return []
    groups = group_jobs(jobs, repeats.setting)
    _write_runs(folder / RUNS, groups, repeats)
    share = overlap_of(repeats)
    described = []
    lines = []
    for settings, members in groups.items():
        done = [job for job in members if job.is_done]
        spreads = {
            name: spread_of([job.metrics[name] for job in done], overlap=share)
            for name in (done[0].metrics if done else ())
            if all(name in job.metrics for job in done)
        }
        described.append({"settings": settings, "runs": len(done), "metrics": _plain(spreads)})
        title = f"{len(done)} of {repeats.count} runs ({repeats.word}={repeats.count})"
        lines.append(f"{title}{': ' + display_text(settings) if settings else ''}")
        lines += _table(spreads)
    summary = {"repeated": repeats.word, "count": repeats.count, "interval": MEANING[repeats.word], "groups": described}
    write_json(folder / SUMMARY, summary)
    lines += [f"interval: {MEANING[repeats.word]}", f"each run: {display_path(folder / RUNS)}"]
    return lines


def group_jobs(jobs: Sequence[Job], setting: str) -> dict[str, list[Job]]:
    """Return the jobs by their own settings, but for the one that is repeated."""
    kept = {job: [item for item in job.overrides if not item.lstrip("+").startswith(f"{setting}=")] for job in jobs}
    common = set.intersection(*map(set, kept.values()))
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(" ".join(item for item in kept[job] if item not in common), []).append(job)
    return groups


def _write_runs(path: Path, groups: Mapping[str, Sequence[Job]], repeats: Repeats) -> None:
    jobs = [(settings, job) for settings, members in groups.items() for job in members]
    names = list(dict.fromkeys(name for _, job in jobs for name in job.metrics))
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", repeats.setting, *(["settings"] if len(groups) > 1 else []), "end", "seconds", *names])
        for settings, job in sorted(jobs, key=lambda item: item[1].number):
            value = next((item for item in job.overrides if item.startswith(f"{repeats.setting}=")), "")
            row: list[Any] = [job.number, value.partition("=")[2].strip("'")]
            row += [escape_formula(settings)] if len(groups) > 1 else []
            seconds = job.summary.get("wall_seconds")
            row += [job.end, "" if seconds is None else f"{seconds:.1f}"]
            writer.writerow(row + [repr(job.metrics[name]) if name in job.metrics else "" for name in names])


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, Any]]:
    return {name: dict(vars(spread)) for name, spread in spreads.items()}


def _table(spreads: Mapping[str, Spread]) -> list[str]:
    """Return a line for each figure that is shown."""
    rows = [("", "mean", "95 % interval", "std")]
    for name, spread in spreads.items():
        if name.partition("/")[2] in SHOWN:
            interval = "" if spread.low is None else f"{spread.low:.4f} to {spread.high:.4f}"
            rows.append((name, f"{spread.mean:.4f}", interval, "" if spread.std is None else f"{spread.std:.4f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] if len(rows) > 1 else []
