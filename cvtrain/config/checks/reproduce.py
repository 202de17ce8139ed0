"""Rules of `reproduce` that need no look into the run's files."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.checks.run import device_problem
from cvtrain.config.errors import Problem
from cvtrain.config.resume import CHECKPOINTS, CONFIG, METRICS
from cvtrain.config.schema.reproduce import ReproduceConfig


def run_is_there(config: ReproduceConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    folder = Path(config.run).expanduser()
    remedy = "name the folder of a run, such as runs/photos/2026-01-31_12-00-00"
    if not folder.is_dir():
        rule = "is a file, not a run folder" if folder.exists() else "no such folder"
        yield Problem("run", config.run, rule, remedy)
    elif missing := [name for name in (CONFIG, METRICS, f"{CHECKPOINTS}/last.pt") if not (folder / name).is_file()]:
        if missing == [f"{CHECKPOINTS}/last.pt"]:
            remedy = "it ended before its first checkpoint, so there is nothing to compare with"
        yield Problem("run", config.run, f"is no run that can be repeated: it has no {', '.join(missing)}", remedy)
    elif config.run_dir is not None and Path(config.run_dir).expanduser().absolute() == folder.absolute():
        yield Problem("run_dir", config.run_dir, "is the run itself", "name another folder")


def device_is_one(config: ReproduceConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.device is not None:
        yield from device_problem("device", config.device)


REPRODUCE_CHECKS = (run_is_there, device_is_one)
