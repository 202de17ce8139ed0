"""Rules of `auto` that need no images."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.durations import parse_duration
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.schema.auto import AutoConfig

MIN_BUDGET = 20.0  # seconds: what a start and a few batches take
STATE = "auto.json"


def budget_is_a_time(config: AutoConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    try:
        seconds = parse_duration(config.budget, "budget")
    except ConfigError as error:
        yield from error.problems
        return
    if seconds < MIN_BUDGET:
        yield Problem("budget", config.budget, f"must be at least {MIN_BUDGET:g} s", "set budget=10m")


def weights_are_files(config: AutoConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    for entry in config.auto.weights:
        path = Path(entry.partition("=")[2] or entry).expanduser()
        if not path.is_file():
            yield Problem("auto.weights", entry, "no such file", f"relative paths start from {Path.cwd()}")


def resumed_folder_exists(config: AutoConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.resume is not None and not (Path(config.resume).expanduser() / STATE).is_file():
        yield Problem("resume", config.resume, f"holds no {STATE}, so no cvtrain auto was stopped there")


AUTO_CHECKS = (budget_is_a_time, weights_are_files, resumed_folder_exists)
