"""The table at the end of a --multirun."""

import json
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.metric_names import metric_direction
from cvtrain.config.schema.trainer import MonitorMode
from cvtrain.config.text import display_text


def describe_jobs(folder: Path) -> list[str]:
    """Return a line per job of a --multirun, and one for the best; empty if no job has left anything.

    Args:
        folder: that of the --multirun; job N is in its subfolder N.
    """
    jobs = sorted((path for path in folder.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))
    summaries = {job: _read_summary(job / "summary.json") for job in jobs}
    overrides = {job: _read_overrides(job / "overrides.yaml") for job in jobs}
    common = set.intersection(*map(set, overrides.values())) if len(jobs) > 1 else set()
    rows = [("job", "metric", "value", "end", "settings")]
    values = {}
    metric = ""
    for job in jobs:
        summary = summaries[job]
        metric = summary.get("monitor", metric)
        value = summary.get("best", {}).get("value")
        if value is not None:
            values[job] = value
        settings = " ".join(display_text(item) for item in overrides[job] if item not in common)
        number = "" if value is None else f"{value:.4f}"
        rows.append((job.name, summary.get("monitor", ""), number, summary.get("end_reason", "failed"), settings))
    if not jobs:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join((*map(str.ljust, row, widths), row[4])).rstrip() for row in rows]
    if len(values) > 1:
        best = (min if metric_direction(metric) is MonitorMode.min else max)(values, key=lambda job: values[job])
        lines.append(f"best: job {best.name}, {metric} {values[best]:.4f}, in {display_text(str(best))}")
    return lines


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the job failed
        return {}


def _read_overrides(path: Path) -> list[str]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError):
        return []
