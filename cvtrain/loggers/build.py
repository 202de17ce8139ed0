"""`build_loggers`: the loggers that a config names, behind one `RunLogger`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.redact import redact
from cvtrain.config.schema.logger import LoggersConfig, MLflowConfig, WandbConfig
from cvtrain.config.serialize import to_plain
from cvtrain.loggers.base import Logger, RunLogger, warn_disabled
from cvtrain.loggers.files import FileLogger
from cvtrain.loggers.mlflow import MLflowLogger
from cvtrain.loggers.tensorboard import TensorBoardLogger
from cvtrain.loggers.trial_channel import current_trial_channel
from cvtrain.loggers.wandb import WandbLogger

log = logging.getLogger(__name__)


def build_loggers(
    config: LoggersConfig,
    *,
    run_dir: Path,
    run_config: Mapping[str, Any],
    name: str,
    state: Mapping[str, Mapping[str, Any]] | None = None,
    resume_step: int | None = None,
) -> RunLogger:
    """Open the loggers of a run: the files always, the others where the config has them.

    Only the main process does this; the others take `RunLogger()`.

    Args:
        config: which loggers, and their settings.
        run_dir: the run folder.
        run_config: the whole config, nested plain values; secrets are redacted here.
        name: name of the run where the config gives none.
        state: what `RunLogger.state()` gave, of a resumed run.
        resume_step: the step of the checkpoint that the run resumes from; TensorBoard hides later points. 0: it starts
            over, and drops the rows in its files. None: a new run.

    Raises:
        ConfigError: a logger is not installed, or WANDB_MODE holds no mode. Any other failure to start disables that
            logger with a warning.
    """
    states = state or {}
    clean_config = redact(to_plain(run_config))
    # What a run logged that was cut before its first checkpoint will be logged again.
    files_state = states.get(FileLogger.name, {"num_rows": 0} if resume_step == 0 else {})
    makers: dict[str, Callable[[], Logger]] = {FileLogger.name: lambda: FileLogger(run_dir=run_dir, **files_state)}
    if config.tensorboard is not None:
        tensorboard = config.tensorboard
        makers[TensorBoardLogger.name] = lambda: TensorBoardLogger(
            run_dir=run_dir, config=clean_config, flush_seconds=tensorboard.flush_seconds, resume_step=resume_step
        )
    if config.wandb is not None:
        wandb = config.wandb
        makers[WandbLogger.name] = lambda: _wandb(wandb, run_dir, clean_config, name, states.get("wandb", {}))
    if config.mlflow is not None:
        mlflow = config.mlflow
        makers[MLflowLogger.name] = lambda: _mlflow(mlflow, clean_config, name, states.get("mlflow", {}))
    loggers: list[Logger] = []
    for logger_name, make in makers.items():
        try:
            loggers.append(make())
        except ConfigError:
            RunLogger(loggers).finish(exit_code=1)
            raise
        except Exception as error:
            warn_disabled(logger_name, error)
    channel = current_trial_channel()
    if channel is not None:
        loggers.append(channel)  # the last: it waits for the search's answer
    return RunLogger(loggers)


def _wandb(
    config: WandbConfig, run_dir: Path, run_config: Mapping[str, Any], name: str, state: Mapping[str, Any]
) -> Logger:
    return WandbLogger(
        run_dir=run_dir,
        config=run_config,
        name=redact(name),
        project=redact(config.project),
        entity=config.entity,
        run_name=redact(config.name),
        group=redact(config.group),
        job_type=redact(config.job_type),
        tags=redact(config.tags),
        notes=redact(config.notes),
        mode=None if config.mode is None else config.mode.value,
        log_images=config.log_images,
        log_checkpoint=config.log_checkpoint,
        init_timeout_seconds=config.init_timeout_seconds,
        finish_timeout_seconds=config.finish_timeout_seconds,
        **state,
    )


def _mlflow(config: MLflowConfig, run_config: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> Logger:
    return MLflowLogger(
        config=run_config,
        name=redact(config.run_name or name),
        experiment=redact(config.experiment),
        tracking_uri=config.tracking_uri,
        log_images=config.log_images,
        log_checkpoint=config.log_checkpoint,
        **state,
    )
