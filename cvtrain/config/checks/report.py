"""Rules of `report` that need no look into the runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.errors import Problem
from cvtrain.config.schema.report import ReportConfig


def runs_are_given(config: ReportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not config.runs:
        yield Problem(
            "runs", config.runs, "names no run", "cvtrain report RUN, such as runs/photos/2026-01-31_12-00-00"
        )
    twice = [run for run in dict.fromkeys(config.runs) if config.runs.count(run) > 1]
    if twice:
        yield Problem("runs", config.runs, f"{twice[0]} is named twice", "name each run once")


def page_is_possible(config: ReportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.output is not None and Path(config.output).expanduser().is_dir():
        yield Problem("output", config.output, "is a folder, not a file", "name the page, such as report.html")


def findings_exist(config: ReportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.check is not None and not (Path(config.check).expanduser() / "findings.csv").is_file():
        rule = "has no findings.csv" if Path(config.check).expanduser().is_dir() else "no such folder"
        yield Problem("check", config.check, rule, "name a folder that cvtrain check wrote, below runs/check")


REPORT_CHECKS = (runs_are_given, page_is_possible, findings_exist)
