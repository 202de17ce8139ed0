"""What the config says of a run as a whole, in the form in which its parts take it."""

from pathlib import Path
from typing import Any

import torch

from cvtrain import __version__
from cvtrain.config.redact import redact
from cvtrain.config.schema.data import Balance
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config
from cvtrain.config.serialize import schema_names, to_plain
from cvtrain.data.balance import class_counts, class_weights
from cvtrain.data.normalize import Normalizer
from cvtrain.data.sources.source import Splits
from cvtrain.loggers.build import RunLogger, build_loggers
from cvtrain.models.build import BuiltModel
from cvtrain.runtime.precision import precision_name
from cvtrain.training.monitor import Monitor, monitor_mode
from cvtrain.training.settings import TrainerSettings


def build_monitor(config: Config) -> Monitor:
    """What follows `trainer.monitor`."""
    name = config.trainer.monitor
    mode = monitor_mode(name, config.trainer.monitor_mode.value)
    return Monitor(name=name, mode=mode, min_delta=config.trainer.early_stop_min_delta)


def planned_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimizer updates of the whole run, which schedules are stretched over."""
    steps = config.trainer.epochs * steps_per_epoch
    return steps if config.trainer.max_steps is None else min(steps, config.trainer.max_steps)


def build_run_logger(config: Config, run_dir: Path, state: dict[str, Any] | None) -> RunLogger:
    """The loggers of the run; those of a run that goes on continue what they had."""
    return build_loggers(
        config.logger,
        run_dir=run_dir,
        run_config=redact(to_plain(config)),
        name=f"{config.name}/{run_dir.name}",
        state=state["loggers"] if state else None,
        resume_step=resume_step(config, state),
    )


def resume_step(config: Config, state: dict[str, Any] | None) -> int | None:
    """The step that a run goes on from, 0 if it was cut before its first checkpoint; None: a new run."""
    if state is None:
        return None if config.resume is None else 0
    return state["position"]["step"]


def trainer_settings(config: Config, built: BuiltModel) -> TrainerSettings:
    """The loop's numbers out of the config."""
    settings = config.trainer
    return TrainerSettings(
        epochs=settings.epochs,
        seed=config.seed,
        max_steps=settings.max_steps,
        max_minutes=settings.max_minutes,
        grad_accum_steps=settings.grad_accum_steps,
        clip_grad_norm=settings.clip_grad_norm,
        on_nonfinite=settings.on_nonfinite.value,
        rollback_lr_factor=settings.rollback_lr_factor,
        early_stop_patience=settings.early_stop_patience,
        eval_every_epochs=settings.eval_every_epochs,
        eval_every_steps=settings.eval_every_steps,
        eval_flip=settings.eval_flip,
        log_every_steps=settings.log_every_steps,
        save_every_steps=config.checkpoint.every_steps,
        save_every_minutes=config.checkpoint.every_minutes,
        save_best=config.checkpoint.save_best,
        aux_loss_weight=built.aux_loss_weight,
        unfreeze_epoch=config.model.unfreeze_epoch,
        freeze_backbone=config.model.freeze is Freeze.backbone,
        compile_mode=settings.compile_mode.value if settings.compile else None,
    )


def checkpoint_metadata(
    config: Config, classes: tuple[str, ...], normalizer: Normalizer, dtype: torch.dtype, total_steps: int
) -> dict[str, Any]:
    """What a checkpoint says of itself: a stranger can prepare an image, and read the answer, with this alone."""
    data = config.data
    return {
        "config": redact(to_plain(config)),
        "schemas": schema_names(config),
        "paths": absolute_paths(config),
        "classes": list(classes),
        "preprocessing": {
            "image_size": data.image_size,
            "channels": data.channels,
            "resize": data.resize.value,
            "crop_fraction": data.crop_fraction,
            "mean": normalizer.mean.flatten().tolist(),
            "std": normalizer.std.flatten().tolist(),
        },
        "precision": precision_name(dtype),
        "planned_steps": total_steps,
        "versions": {"cvtrain": __version__, "torch": str(torch.__version__)},
    }


def absolute_paths(config: Config) -> dict[str, str]:
    """Where the relative paths of the data are, for who evaluates in another working folder."""
    typed = {f"data.{name}": getattr(config.data, name, "") for name in ("root", "file")}
    return {key: str(Path(path).expanduser().absolute()) for key, path in typed.items() if path}


def balance_weights(config: Config, splits: Splits) -> torch.Tensor | None:
    """(num_classes,) float32 weights of the loss for `data.balance=class_weights`, else None."""
    if config.data.balance is not Balance.class_weights:
        return None
    return torch.from_numpy(class_weights(class_counts(splits.train.labels, len(splits.classes)))).float()
