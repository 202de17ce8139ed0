"""The verbs as Python functions: `cvtrain.train` and `cvtrain.evaluate`, and the parts that a notebook builds alone."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from cvtrain.commands.evaluate import EvaluateResult
from cvtrain.commands.evaluate import evaluate as run_evaluate
from cvtrain.commands.train import TrainResult
from cvtrain.commands.train import train as run_train
from cvtrain.config.compose import compose_verb, overrides_of
from cvtrain.config.errors import ConfigError
from cvtrain.config.overrides import override
from cvtrain.config.resolvers import new_run_dir
from cvtrain.config.resolvers import run_dir as choose_run_dir
from cvtrain.config.schema.root import Config
from cvtrain.data import build as data_build
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import Splits
from cvtrain.distributed.env import rank_from_env
from cvtrain.models import build as model_build
from cvtrain.runtime.console import ConsoleHandler
from cvtrain.runtime.device import select_device
from cvtrain.runtime.run_folder import removed_if_refused

FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def train(*config: Config | str, run_dir: str | os.PathLike[str] | None = None) -> TrainResult:
    """Train in this process and return the metrics, the run folder and the best checkpoint.

    The run folder, its files and the log lines are those of `cvtrain train`. Ctrl-C, or the stop button of a notebook,
    saves the run and returns.

    Args:
        config: one Config, or overrides as on the command line: `train("data=custom", "data.root=photos")`.
        run_dir: the run folder; None: a new one in `output_root/name`, or that of the run that `resume` names.

    Raises:
        ConfigError: everything that is wrong with the config, or that the data or the device proves wrong.
        NonFiniteLossError: the loss became NaN or infinite and `trainer.on_nonfinite=stop`.
    """
    if len(config) == 1 and isinstance(config[0], Config):
        settings, overrides = config[0], overrides_of(config[0])
    else:
        settings, overrides = compose_verb("train", [_as_override(word) for word in config])
    _refuse_several_processes(settings)
    folder = Path(run_dir or choose_run_dir(settings.output_root, settings.name, settings.resume))
    with removed_if_refused(folder, settings.output_root), run_logging(folder / "train.log", settings.log_level):
        return run_train(settings, run_dir=folder, overrides=overrides)


def evaluate(
    checkpoint: str | os.PathLike[str], *overrides: str, run_dir: str | os.PathLike[str] | None = None
) -> EvaluateResult:
    """Score a checkpoint on a split and return its metrics, as `cvtrain evaluate` does.

    Args:
        checkpoint: such as `result.best_checkpoint`.
        overrides: as on the command line: `"split=test"`, `"data.root=other_photos"`.
        run_dir: folder of the results; None: a new one in `output_root/split`.

    Raises:
        ConfigError: the checkpoint cannot be used, or the images do not fit its classes.
    """
    settings, tokens = compose_verb("evaluate", [override("checkpoint", os.fspath(checkpoint)), *overrides])
    folder = Path(run_dir or new_run_dir(settings.output_root, settings.split.value))
    with removed_if_refused(folder, settings.output_root), run_logging(folder / "evaluate.log", settings.log_level):
        return run_evaluate(settings, run_dir=folder, overrides=tokens)


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Return the network of a config: normalised (B, C, S, S) float32 images to (B, num_classes) logits.

    On the CPU and in training mode; random weights come from torch's default generator.

    Raises:
        ConfigError: weights cannot be had or do not fit, or the network cannot take the images.
    """
    data = config.data
    built = model_build.build_model(
        config.model, num_classes=num_classes, channels=data.channels, image_size=data.image_size
    )
    return built.module


def build_loaders(config: Config, splits: Splits | None = None) -> data_build.Loaders:
    """Return the loaders of a config: `train`, `val` and `test` (None if there is no such split).

    `loader.epoch(0)` yields the batches of epoch 0: `images` (B, C, S, S) uint8, `labels` (B,), augmented as
    `config.augment` says. Close the loaders when done: `loaders.close()`.

    Args:
        splits: what `build_splits(config.data)` gave, whose `classes` name the labels; None: builds them.

    Raises:
        ConfigError: there are no such images, or they do not fit the settings.
    """
    device = select_device(config.trainer.device)
    return data_build.build_loaders(config, splits or build_splits(config.data), device=device)


@contextlib.contextmanager
def run_logging(path: Path, level: str) -> Iterator[None]:
    """Inside, cvtrain's log lines go to the file `path`, and to the console unless the program logs by itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("cvtrain")
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter(FILE_FORMAT))
    if not logging.getLogger().handlers:
        handlers.append(ConsoleHandler())
    previous = log.level
    log.setLevel(level)
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(previous)
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def _as_override(word: Config | str) -> str:
    if isinstance(word, str):
        return word
    raise TypeError(f"train takes one Config, or overrides such as 'optimizer.lr=0.01', not {type(word).__name__}")


def _refuse_several_processes(config: Config) -> None:
    """Raise ConfigError where the command line would train in several processes."""
    if isinstance(config.trainer.devices, int) and config.trainer.devices > 1:
        raise ConfigError(
            "trainer.devices",
            config.trainer.devices,
            "cvtrain.train trains in this process alone",
            "start the command line, or torchrun -m cvtrain, for several",
        )
    if rank_from_env() is not None:
        raise ConfigError(
            rule="cvtrain.train trains in one process, and torchrun or srun has started several",
            remedy="start torchrun -m cvtrain with the same overrides",
        )
