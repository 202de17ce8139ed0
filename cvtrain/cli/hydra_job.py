"""A command as a job of Hydra's, which makes the run folder, sets up logging and calls the verb."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, read_write

from cvtrain.cli.hydra_run import Job, PassThroughError
from cvtrain.cli.parser import ParsedCommand
from cvtrain.config.composer import VERSION_BASE
from cvtrain.config.location import conf_dir


def run_with_hydra(command: ParsedCommand, job: Job) -> None:
    """Let Hydra read the command again, show what it is asked for, or run `job` once or for each trial."""

    def task(cfg: DictConfig) -> float | None:  # Hydra wants a function
        return job(cfg)

    with _hydra_arguments(command), _own_errors():
        hydra.main(config_path=str(conf_dir()), config_name=command.verb, version_base=VERSION_BASE)(task)()


def run_composed(job: Job, config: DictConfig) -> None:
    """Run `job` once with a composed, checked config: `run_with_hydra` without Hydra's own reading and composing."""
    with read_write(config.hydra):
        config.hydra.mode = RunMode.RUN
    HydraConfig.instance().set_config(config)
    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name=job.composer.primary)
    with _own_errors():
        result = run_job(
            task_function=job,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=HydraContext(config_loader=job.composer.loader, callbacks=callbacks),
        )
    callbacks.on_run_end(config=config, config_name=job.composer.primary, job_return=result)
    _ = result.return_value  # raises what the job raised


@contextmanager
def _own_errors() -> Iterator[None]:
    """Takes a user's error out of what has carried it through Hydra."""
    try:
        yield
    except PassThroughError as refused:
        raise refused.error from refused.__cause__


@contextmanager
def _hydra_arguments(command: ParsedCommand) -> Iterator[None]:
    """`sys.argv` as Hydra reads it, and exceptions that come through instead of being printed short."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *command.flags, *command.overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
