"""The verb `reproduce`: trains a run again in another folder, and compares every figure and weight."""

import dataclasses
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cvtrain.checkpoint import LAST, inspect_checkpoint
from cvtrain.commands.evaluate import found_path
from cvtrain.commands.train import train
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.resume import CHECKPOINTS, CONFIG, is_finished
from cvtrain.config.schema.data import PATH_SETTINGS
from cvtrain.config.schema.logger import LoggersConfig
from cvtrain.config.schema.reproduce import ReproduceConfig
from cvtrain.config.schema.root import Config
from cvtrain.config.schema.trainer import Precision
from cvtrain.config.serialize import from_plain, to_plain
from cvtrain.config.text import first_line
from cvtrain.loggers.files import METRICS_JSONL, read_metrics
from cvtrain.report.json_file import write_json
from cvtrain.report.reproduction import (
    FigureComparison,
    WeightComparison,
    compare_figures,
    compare_weights,
    likely_causes,
)
from cvtrain.runtime.console import display_path

log = logging.getLogger(__name__)

RESULT = "reproduction.json"


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` gives back.

    Attributes:
        weights: of the last checkpoints; None if they are of different steps, as of an unfinished run.
        exit_code: 0, or that of the training, such as 130 after Ctrl-C: then nothing was compared.
    """

    figures: FigureComparison
    weights: WeightComparison | None
    causes: list[str]
    exit_code: int = 0

    @property
    def is_equal(self) -> bool:
        return not self.figures.num_different and (self.weights is None or not self.weights.num_different)


def reproduce(config: ReproduceConfig, *, run_dir: Path) -> Reproduction:
    """Train the run in `config.run` again into `run_dir`, and compare figures and weights.

    The config is that of its config.yaml, the seed included, without its loggers and pictures; a precision that was
    chosen by speed is the one that was chosen.

    Raises:
        ConfigError: the run is damaged, or nothing was trained in it.
        RunError: the result cannot be written.
    """
    folder = Path(config.run).expanduser()
    before = read_figures(folder)
    state = inspect_checkpoint(folder / CHECKPOINTS / LAST)
    finished = is_finished(folder)
    step = int(state["position"]["step"])
    log.info("repeating %s: %d steps%s", display_path(folder), step, "" if finished else ", after which it was cut")
    settings = settings_of_run(folder, state, device=config.device)
    result = train(settings, run_dir=run_dir, overrides=[])
    if result.exit_code:
        return Reproduction(FigureComparison(0, 0, 0, None), None, [], result.exit_code)
    again = inspect_checkpoint(run_dir / CHECKPOINTS / LAST)
    same_step = int(again["position"]["step"]) == step
    figures = compare_figures(before, read_metrics(run_dir / METRICS_JSONL))
    weights = compare_weights(state["model"], again["model"]) if same_step else None
    outcome = Reproduction(figures, weights, [])
    if not outcome.is_equal:
        outcome = replace(outcome, causes=list(likely_causes(folder, run_dir, state, again, to_plain(settings))))
    try:
        write_json(run_dir / RESULT, {"run": folder, "equal": outcome.is_equal, **dataclasses.asdict(outcome)})
    except OSError as error:
        raise RunError(f"{run_dir / RESULT} could not be written: {error.strerror or error}") from error
    for line in describe(outcome, finished=finished):
        log.info("%s", line)
    return outcome


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl.

    Raises:
        ConfigError: it is damaged or empty.
    """
    try:
        rows = read_metrics(folder / METRICS_JSONL)
        complete = all(isinstance(row["step"], int) and isinstance(row["epoch"], int) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("run", folder, f"{METRICS_JSONL} is damaged: {first_line(error)}") from error
    if not rows or not complete:
        rule = f"{METRICS_JSONL} is damaged" if rows else f"{METRICS_JSONL} is empty: there is nothing to compare with"
        raise ConfigError("run", folder, rule, "name another run")
    return rows


def settings_of_run(folder: Path, state: dict[str, Any], *, device: str | None) -> Config:
    """Return the config of a run, as it is repeated.

    Args:
        state: its last checkpoint, which names the schemas of the config.
        device: another device; None: the run's.

    Raises:
        ConfigError: config.yaml is damaged or of another version, or the run had several processes.
    """
    path = folder / CONFIG
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError("run", folder, f"{CONFIG} cannot be read: {first_line(error)}") from error
    if not isinstance(plain, dict) or not isinstance(state.get("schemas"), dict):
        raise ConfigError("run", folder, f"{CONFIG if state.get('schemas') else LAST} is damaged")
    config = from_plain({**plain, "logger": {}}, state["schemas"])
    devices = config.trainer.devices
    if isinstance(devices, int) and devices > 1:
        rule = f"was trained by {devices} processes (trainer.devices), and reproduce trains in one"
        raise ConfigError("run", folder, rule, "start the command of its environment.json in another folder")
    paths = state.get("paths", {})
    changes: dict[str, Any] = {
        name: found_path(f"data.{name}", getattr(config.data, name), paths)
        for name in PATH_SETTINGS
        if getattr(config.data, name, None)
    }
    trainer = config.trainer
    if trainer.precision is Precision.auto and state.get("precision") in Precision.__members__:
        trainer = replace(trainer, precision=Precision(state["precision"]))
    trainer = trainer if device is None else replace(trainer, device=device)
    data = replace(config.data, **changes)
    return replace(config, data=data, trainer=trainer, logger=LoggersConfig(), resume=None, plots=False)


def describe(outcome: Reproduction, *, finished: bool) -> list[str]:
    """Return lines for the console."""
    figures, weights = outcome.figures, outcome.weights
    lines = []
    if not finished:
        lines.append(f"the run was not finished: figures are compared up to its last step, {figures.last_step}")
    count = f"{figures.num_values:,} figures up to step {figures.last_step:,}"
    lines.append(f"{count}: equal" if figures.first is None else f"{count}: {figures.num_different:,} differ")
    if figures.first is not None:
        lines.append(f"the first to differ, {figures.first}")
    if weights is None:
        lines.append("weights: not compared, the last checkpoints are of different steps")
    elif weights.num_different:
        lines.append(
            f"weights: {weights.num_different} of {weights.num_tensors} tensors differ, by {weights.largest:.3g} at "
            f"most, the first {weights.first}"
        )
    else:
        lines.append(f"weights: {weights.num_tensors} tensors, equal to the bit")
    if outcome.is_equal:
        return [*lines, "reproduced"]
    return [
        *lines,
        *(f"likely cause: {cause}" for cause in outcome.causes or ["none that is on record"]),
        "not reproduced",
    ]
