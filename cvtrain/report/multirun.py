"""The table at the end of a --multirun."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.metric_names import metric_direction
from cvtrain.config.schema.trainer import MonitorMode
from cvtrain.config.text import display_text
from cvtrain.report.json_file import read_json


@dataclass(frozen=True, eq=False)
class Job:
    """A job of a --multirun: its folder, what its summary.json says, and its overrides."""

    folder: Path
    summary: dict[str, Any]
    overrides: list[str]

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def end(self) -> str:
        """Why it ended."""
        return str(self.summary.get("end_reason", "failed"))

    @property
    def is_done(self) -> bool:
        """False if it failed or was interrupted."""
        return self.end not in ("failed", "interrupted")

    @property
    def value(self) -> float | None:
        """Best value of `trainer.monitor`."""
        return self.summary.get("best", {}).get("value")

    @property
    def metrics(self) -> dict[str, float]:
        """`val/...` of its best evaluation, `test/...` if there is a test split."""
        found = self.summary.get("best", {}).get("metrics", {})
        return {name: value for name, value in found.items() if isinstance(value, float)}


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a --multirun by number; job N is in the subfolder N of its folder."""
    found = sorted((path for path in folder.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))
    return [Job(path, read_json(path / "summary.json"), _read_overrides(path / "overrides.yaml")) for path in found]


def describe_jobs(folder: Path, *, choose: bool = True) -> list[str]:
    """Return a line per job of a --multirun, and one for the best; empty if no job has left anything.

    Args:
        folder: that of the --multirun.
        choose: name the best.
    """
    jobs = read_jobs(folder)
    if not jobs:
        return []
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    rows = [("job", "metric", "value", "end", "settings")]
    for job in jobs:
        settings = " ".join(display_text(item) for item in job.overrides if item not in common)
        number = "" if job.value is None else f"{job.value:.4f}"
        rows.append((job.folder.name, job.summary.get("monitor", ""), number, job.end, settings))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join((*map(str.ljust, row, widths), row[4])).rstrip() for row in rows]
    values = {job: job.value for job in jobs if job.value is not None}
    if choose and len(values) > 1:
        metric = next(job.summary["monitor"] for job in reversed(jobs) if "monitor" in job.summary)
        best = (min if metric_direction(metric) is MonitorMode.min else max)(values, key=lambda job: values[job])
        lines.append(f"best: job {best.number}, {metric} {values[best]:.4f}, in {display_text(str(best.folder))}")
    return lines


def _read_overrides(path: Path) -> list[str]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError):
        return []
