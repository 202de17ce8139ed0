"""A command as a job of Hydra's, which makes the run folder, sets up logging and calls the verb."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError

from cvtrain.cli.hydra_run import Job, PassThroughError, was_requeued
from cvtrain.cli.parser import ParsedCommand
from cvtrain.config.composer import VERSION_BASE
from cvtrain.config.errors import ConfigError
from cvtrain.config.location import conf_dir
from cvtrain.config.overrides import override
from cvtrain.config.resolvers import new_run_dir
from cvtrain.config.resume import refuse_used_folder
from cvtrain.report.multirun import describe_jobs
from cvtrain.runtime.lock import unusable_folder

# As conf/train.yaml and conf/evaluate.yaml have it, up to the time.
DEFAULT_SWEEP_DIR = "${output_root}/multirun/"
log = logging.getLogger(__name__)


def run_with_hydra(command: ParsedCommand, job: Job) -> None:
    """Let Hydra read the command again, show what it is asked for, or run `job` once or for each trial."""

    def task(cfg: DictConfig) -> float | None:  # Hydra wants a function
        return job(cfg)

    if not command.is_info_only:
        command = with_sweep_folder(command, job)
    try:
        with _hydra_arguments(command), _own_errors():
            hydra.main(config_path=str(conf_dir()), config_name=command.verb, version_base=VERSION_BASE)(task)()
    finally:
        for line in describe_jobs(sweep_folder(command)) if command.options.multirun else ():
            log.info("%s", line)


def run_composed(job: Job, config: DictConfig) -> None:
    """Run `job` once with a composed, checked config: `run_with_hydra` without Hydra's own reading and composing."""
    with read_write(config.hydra):
        config.hydra.mode = RunMode.RUN
    HydraConfig.instance().set_config(config)
    make_run_folder(config)
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


def make_run_folder(config: DictConfig) -> None:
    """Make the run folder of a composed config before Hydra writes to it.

    Raises:
        ConfigError: it cannot be made, or holds another run and nothing is resumed.
    """
    folder = Path()
    try:
        folder = Path(config.hydra.run.dir)
        if config.get("resume") is None:
            refuse_used_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(folder, error) from error
    except InterpolationResolutionError as error:  # of the resolver that makes new folders
        first_line = str(error).splitlines()[0]
        if "[Errno" not in first_line:
            raise
        cause = first_line.partition("resolving interpolation: ")[2]
        raise ConfigError(
            "output_root",
            config.output_root,
            f"no run folder can be made there: {cause}",
            "set output_root=... to another",
        ) from error


def with_sweep_folder(command: ParsedCommand, job: Job) -> ParsedCommand:
    """Return the command with a sweep folder that no other command uses, if it is a --multirun.

    Raises:
        ConfigError: hydra.sweep.dir holds another sweep or run and nothing is resumed.
    """
    config = job.composer.compose(command.overrides)
    is_sweep = command.options.multirun or str(config.hydra.mode or "").endswith("MULTIRUN")
    if not is_sweep or command.verb == "sweep":
        return command
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if sweep["dir"].startswith(DEFAULT_SWEEP_DIR):
        folder = new_run_dir(config.output_root, "multirun")
        return replace(command, overrides=[*command.overrides, override("hydra.sweep.dir", folder)])
    if config.get("resume") is None and not was_requeued():
        HydraConfig.instance().set_config(config)  # for ${hydra:...}
        refuse_used_folder(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
    return command


def sweep_folder(command: ParsedCommand) -> Path:
    """Return the folder of a --multirun as `with_sweep_folder` has set it; else one that is not there."""
    tokens = [token for token in command.overrides if token.startswith("hydra.sweep.dir=")]
    value = OverridesParser.create().parse_override(tokens[-1]).value() if tokens else None
    return Path(value if isinstance(value, str) else "/nonexistent")


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
