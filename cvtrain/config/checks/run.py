"""Rules of the run itself: its name, its folder, its device, and the checkpoint that `evaluate` reads."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.repeats import SETTINGS
from cvtrain.config.resume import MUST, resumed_folder
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.export import ExportConfig
from cvtrain.config.schema.predict import PredictConfig
from cvtrain.config.schema.root import Config, EvaluateConfig
from cvtrain.config.schema.serve import ServeConfig
from cvtrain.config.schema.trainer import Precision

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# A folder's name on every system: no separators, no control characters, no leading or trailing dot or space.
RUN_NAME = re.compile(r'(?![ .])[^/\\:*?"<>|\x00-\x1f]{1,200}(?<![ .])')


def name_is_folder_name(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not RUN_NAME.fullmatch(config.name):
        yield Problem(
            "name",
            config.name,
            "is no folder name: slashes, colons and the like are not allowed, nor a dot or space at its ends",
            "set name=..., or output_root=... for another place",
        )


def repeats_are_of_the_command_line(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """The command line makes several commands of these words; one run has neither."""
    for word, setting in SETTINGS.items():
        value = getattr(config, word)
        if value is not None:
            rule = "makes several runs of one command, so it is a word of cvtrain train's command line alone"
            yield Problem(word, value, rule, f"give it there, or make the runs one by one with {setting}=...")


def output_root_is_folder(
    config: Config | EvaluateConfig | CheckConfig, is_set: Callable[[str], bool]
) -> Iterator[Problem]:
    root = Path(config.output_root).expanduser()
    existing = next((path for path in (root, *root.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        yield Problem("output_root", config.output_root, f"{existing} is a file, not a folder")
        return
    takes_its_place = is_set("hydra.run.dir") or is_set("hydra.sweep.dir")
    if existing is not None and not os.access(existing, os.W_OK | os.X_OK) and not takes_its_place:
        rule = f"nothing can be written in {existing.absolute()}, where the run's folder would be"
        yield Problem("output_root", config.output_root, rule, "set output_root=... to a folder of yours")


def run_to_resume_exists(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.resume is None:
        return
    try:
        found = resumed_folder(config.output_root, config.name, config.resume)
    except ConfigError as error:
        yield from error.problems
        return
    if config.resume == MUST and found is None and not (is_set("hydra.run.dir") or is_set("hydra.sweep.dir")):
        yield Problem(
            "resume",
            MUST,
            f"there is no unfinished run in {Path(config.output_root) / config.name}",
            "give its folder, resume=PATH, or start anew with resume=auto",
        )


def device_problem(key: str, device: str) -> Iterator[Problem]:
    if not DEVICE.fullmatch(device):
        yield Problem(key, device, "must be auto, cpu, cuda, cuda:<number> or mps")


def precision_problem(prefix: str, device: str, precision: Precision | None) -> Iterator[Problem]:
    if precision is Precision.fp16 and device == "cpu":
        yield Problem(
            f"{prefix}precision",
            precision,
            f"needs a GPU, but {prefix}device=cpu",
            "on a CPU use bf16 or fp32, or auto for the better of the two",
        )


def training_device(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from device_problem("trainer.device", config.trainer.device)
    yield from precision_problem("trainer.", config.trainer.device, config.trainer.precision)


def evaluation_device(config: EvaluateConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from device_problem("device", config.device)
    yield from precision_problem("", config.device, config.precision)


def checkpoint_exists(
    config: EvaluateConfig | PredictConfig | ExportConfig | ServeConfig, is_set: Callable[[str], bool]
) -> Iterator[Problem]:
    path = Path(config.checkpoint).expanduser()
    if path.is_file():
        return
    if path.is_dir():
        found = sorted(path.glob("checkpoints/*.pt")) or sorted(path.glob("*.pt"))
        remedy = "did you mean " + " or ".join(f"checkpoint={file}" for file in found[:3]) + "?" if found else ""
        yield Problem("checkpoint", config.checkpoint, "is a folder, not a checkpoint file", remedy)
    else:
        yield Problem(
            "checkpoint",
            config.checkpoint,
            "no such file",
            f"a run keeps them in <run folder>/checkpoints/; paths start from {Path.cwd()}",
        )


def evaluation_data_exists(config: EvaluateConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.data.root is not None and not Path(config.data.root).expanduser().is_dir():
        yield Problem("data.root", config.data.root, "no such folder")
    if config.data.file is not None and not Path(config.data.file).expanduser().is_file():
        yield Problem("data.file", config.data.file, "no such file")
    workers = config.data.num_workers
    if workers is not None:
        yield from workers_problem(workers)


def workers_problem(workers: int | str) -> Iterator[Problem]:
    """`num_workers` is a union of types in the schema, so its values are checked here."""
    if (
        isinstance(workers, bool)
        or (isinstance(workers, str) and workers != "auto")
        or (isinstance(workers, int) and workers < 0)
    ):
        yield Problem("data.num_workers", workers, "must be a whole number at least 0, or auto")


RUN_CHECKS = (
    repeats_are_of_the_command_line,
    run_to_resume_exists,
    name_is_folder_name,
    output_root_is_folder,
    training_device,
)
EVALUATE_CHECKS = (checkpoint_exists, output_root_is_folder, evaluation_device, evaluation_data_exists)
