"""Rules of `predict` and `merge` that need neither the checkpoint nor the images."""

import glob
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.checks.run import checkpoint_exists, device_problem, precision_problem, workers_problem
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.imports import install_remedy
from cvtrain.config.prediction_paths import (
    JOB,
    STDIN,
    SUFFIXES,
    explanations_folder,
    parse_part,
    table_path,
    unfinished_folder,
)
from cvtrain.config.schema.predict import MergeConfig, PredictConfig, SortMode


def source_exists(config: PredictConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    source = Path(config.source).expanduser()
    if config.source != STDIN and not source.exists() and not glob.has_magic(config.source):
        yield Problem(
            "source",
            config.source,
            "no such file or folder",
            f"relative paths start from {Path.cwd()}; a pattern such as 'photos/**/*.jpg' needs quotes",
        )


def output_is_possible(config: PredictConfig | MergeConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    part = config.part if isinstance(config, PredictConfig) else None
    try:
        parse_part(part)
    except ConfigError as error:
        yield from error.problems
        return
    table = table_path(config.output, part)
    if table.suffix not in SUFFIXES:
        yield Problem("output", config.output, f"the format is unknown: a name ends in {', '.join(SUFFIXES)}")
        return
    if table.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        rule = "needs the package pyarrow, which is not installed"
        yield Problem("output", config.output, rule, install_remedy("parquet", "pyarrow"))
    if table.is_dir():
        yield Problem("output", config.output, "is a folder, not a file")
    elif not config.overwrite:
        is_started = (unfinished_folder(table) / JOB).exists()
        if isinstance(config, PredictConfig) and is_started:
            if config.resume is None:
                rule = f"a stopped command left its rows in {unfinished_folder(table)}"
                yield Problem("output", config.output, rule, "resume=auto goes on, overwrite=true starts again")
        elif table.exists():
            yield Problem("output", config.output, f"{table} is there already", "choose another, or set overwrite=true")
        elif isinstance(config, PredictConfig) and config.explain and explanations_folder(table).exists():
            rule = f"{explanations_folder(table)} is there already, where the overlays would be"
            yield Problem("explain", True, rule, "choose another output, or set overwrite=true")


def threads_and_device(config: PredictConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from device_problem("device", config.device)
    yield from precision_problem("", config.device, config.precision)
    yield from workers_problem(config.data.num_workers)


def method_has_effect(config: PredictConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if is_set("explain_method") and not config.explain:
        yield Problem("explain_method", config.explain_method, "has no effect without explain=true", "add explain=true")


def sorting_is_safe(config: PredictConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.sort_into is None:
        for key in ("mode", "yes"):
            if is_set(key):
                yield Problem(key, getattr(config, key), "has no effect without sort_into", f"leave {key} out")
        return
    target, source = Path(config.sort_into).expanduser().resolve(), Path(config.source).expanduser()
    if config.mode is SortMode.move and not config.yes:
        yield Problem("mode", config.mode, "takes the images away from where they are", "if you mean it, add yes=true")
    if target.exists() and not target.is_dir():
        yield Problem("sort_into", config.sort_into, "is a file, not a folder")
    if config.source != STDIN and source.exists() and source.resolve().is_relative_to(target):
        rule = f"the source, {config.source}, lies in it: sorted images would be read as new ones"
        yield Problem("sort_into", config.sort_into, rule, "choose a folder beside the source")


PREDICT_CHECKS = (
    checkpoint_exists,
    source_exists,
    output_is_possible,
    threads_and_device,
    method_has_effect,
    sorting_is_safe,
)
MERGE_CHECKS = (output_is_possible,)
