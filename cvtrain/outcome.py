"""What a run leaves in its folder: the config at the start; figures, pictures and tables at the end."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cvtrain.checkpoint import CheckpointError, inference_weights, load_checkpoint
from cvtrain.config.redact import redact
from cvtrain.config.root import Config
from cvtrain.config.serialize import to_plain
from cvtrain.data.bad_images import write_skipped
from cvtrain.data.loading import Loaders
from cvtrain.data.source import ImageSource, Splits
from cvtrain.evaluation import Evaluation, evaluate_split
from cvtrain.loggers.build import RunLogger
from cvtrain.report.environment import write_environment
from cvtrain.report.plots import plot_confusion, plot_curves, plot_images
from cvtrain.report.summary import write_json
from cvtrain.report.tables import write_per_class_csv, write_predictions_csv
from cvtrain.runtime import peak_memory_gib, precision_name
from cvtrain.trainer import EndReason, Trainer

log = logging.getLogger(__name__)

SAMPLE_IMAGES = 16


@dataclass
class Run:
    """A run that is assembled: what training and its report need."""

    config: Config
    run_dir: Path
    splits: Splits
    loaders: Loaders
    trainer: Trainer
    logger: RunLogger


def record_start(config: Any, run_dir: Path, overrides: list[str]) -> None:
    """Write config.yaml, overrides.yaml and environment.json before anything can go wrong."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.yaml", to_plain(config)), ("overrides.yaml", overrides)):
        text = yaml.safe_dump(redact(content), sort_keys=False, allow_unicode=True)
        (run_dir / name).write_text(text, encoding="utf-8")
    write_environment(run_dir / "environment.json")


def write_outcome(run: Run, end_reason: EndReason, *, wall_seconds: float) -> dict[str, float]:
    """Score the test split with the best weights, write summary, plots and tables; gives the final metrics.

    An interrupted run is not tested: `test` is scored once, when a run is done.
    """
    trainer = run.trainer
    best = trainer.best_evaluation or trainer.last_evaluation
    metrics: dict[str, float] = {}
    if best is not None:
        metrics |= {f"val/{name}": value for name, value in best.metrics.items()}
        write_evaluation(run.run_dir, "val", best, run.splits.val, run.splits.classes, run.loaders.val)
    tested = None
    if run.splits.test is not None and run.loaders.test is not None and end_reason is not EndReason.interrupted:
        tested = score_test(run)
        metrics |= {f"test/{name}": value for name, value in tested.metrics.items()}
        write_evaluation(run.run_dir, "test", tested, run.splits.test, run.splits.classes, run.loaders.test)
        log.info("test: loss %.4f, accuracy %.4f", tested.metrics["loss"], tested.metrics["accuracy"])
    num_skipped = write_skipped(run.run_dir / "skipped_images.csv", run.loaders.bad_images())
    summary = summarize(run, end_reason, metrics, wall_seconds=wall_seconds, num_skipped=num_skipped)
    write_json(run.run_dir / "summary.json", summary)
    plot_run(run)
    run.logger.log_summary(summary)
    best_path = run.run_dir / "checkpoints" / "best.pt"
    if best_path.exists():
        run.logger.log_artifact(best_path)
    log_closing_lines(run, end_reason, best, wall_seconds)
    return metrics
