"""A command as a job of Hydra's, which makes the run folder, sets up logging and calls the verb."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError

from cvtrain.cli.parser import ParsedCommand, build_parser
from cvtrain.config.composer import Composer
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.load import typed_config, with_origins
from cvtrain.config.overrides import override
from cvtrain.config.redact import redact
from cvtrain.config.repeats import Repeats
from cvtrain.config.resolvers import new_run_dir, register_resolvers
from cvtrain.config.resume import AUTO, refuse_used_folder
from cvtrain.config.schema.root import register_schemas
from cvtrain.distributed.errors import LostProcessError
from cvtrain.distributed.rendezvous import Rendezvous
from cvtrain.report.multirun import describe_jobs
from cvtrain.report.repeats import write_repeats
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter, log_exception_to_file
from cvtrain.runtime.lock import unusable_folder
from cvtrain.runtime.run_folder import removed_if_refused
from cvtrain.runtime.signals import is_signal_exit

# As conf/train.yaml and conf/evaluate.yaml have it, up to the time.
DEFAULT_SWEEP_DIR = "${output_root}/multirun/"
log = logging.getLogger(__name__)

Task = Callable[[Any, Path, list[str]], float | None]


class PassThroughError(BaseException):
    """Carries a user's error out of Hydra's job, which prints a line of its own for every Exception."""

    def __init__(self, error: ConfigError | RunError | LostProcessError) -> None:
        super().__init__(str(error))
        self.error = error


class StoppedTrialError(RunError):
    """A signal ended a trial in a launcher's process; the others continue."""


@dataclass(frozen=True)
class Job:
    """The task function of Hydra, called with the composed config of each run. Launchers pickle it.

    Attributes:
        task: the verb.
        composer: finds where a wrong value was set.
        rendezvous: of the ranks of a run, lets one report why it ended.
        launcher_pid: the process that the command was given to.
    """

    task: Task
    composer: Composer
    rendezvous: Rendezvous = field(default_factory=Rendezvous)
    launcher_pid: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> float | None:
        if os.getpid() != self.launcher_pid:  # a fresh interpreter knows neither
            register_schemas()
            register_resolvers(self.composer)
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            return self._run_trial(cfg, hydra_config)
        overrides = as_typed(hydra_config.overrides.task)
        try:
            return self._run(cfg, hydra_config)
        except ConfigError as error:
            self._note(error)
            raise PassThroughError(with_origins(error, self.composer, overrides)) from error
        except (RunError, LostProcessError) as error:
            self._note(error)
            raise PassThroughError(error) from error
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        if self.rendezvous.should_report(error):
            log_exception_to_file(error)

    def _run(self, cfg: DictConfig, hydra_config: HydraConf) -> float | None:
        overrides = as_typed(hydra_config.overrides.task)
        tokens = [*as_typed(hydra_config.overrides.hydra), *overrides]
        config = typed_config(cfg, self.composer, tokens, hydra_config.runtime.choices)
        if hydra_config.mode == RunMode.MULTIRUN and was_requeued() and getattr(config, "resume", AUTO) is None:
            config = replace(config, resume=AUTO)  # in the same folder as before
        return self.task(config, Path(hydra_config.runtime.output_dir), overrides)

    def _run_trial(self, cfg: DictConfig, hydra_config: HydraConf) -> float | None:
        """Run one trial of several. Logs its error at once: the launcher reports only the first, at the end."""
        _redact_sweep_record(Path(hydra_config.sweep.dir))
        if os.getpid() != self.launcher_pid:  # a launcher's process, beside those of other jobs
            for handler in logging.getLogger().handlers:
                if isinstance(handler, ConsoleHandler):
                    handler.setFormatter(DisplayFormatter(f"[job {hydra_config.job.num}] %(message)s"))
        overrides = as_typed(hydra_config.overrides.task)
        try:
            return self._run(cfg, hydra_config)
        except SystemExit as request:
            code = request.code if isinstance(request.code, int) else 1
            # Here a signal is for the whole command; and Slurm starts the same trial again.
            if os.getpid() == self.launcher_pid or "SLURM_JOB_ID" in os.environ or not is_signal_exit(code):
                raise
            folder = hydra_config.runtime.output_dir
            error: Exception = StoppedTrialError(
                f"trial {hydra_config.job.num} was stopped by a signal (exit code {code}); it is saved in {folder}"
            )
            log.warning("%s", error)
            raise error from None
        except ConfigError as config_error:
            error = explained = with_origins(config_error, self.composer, overrides)
            log_trial_failure(hydra_config, error)
            if any(problem.key == "data.fold" for problem in explained.problems) and os.getpid() == self.launcher_pid:
                raise PassThroughError(explained) from config_error  # as each of the other folds would
            raise error from config_error
        except Exception as other_error:
            log_trial_failure(hydra_config, other_error)
            raise


def run_composed(job: Job, config: DictConfig) -> None:
    """Run `job` once with a composed, checked config."""
    with read_write(config.hydra):
        config.hydra.mode = RunMode.RUN
    HydraConfig.instance().set_config(config)
    run_folder = make_run_folder(config)
    # Verbs without an output root have no run folder: theirs is the working folder.
    refusable = removed_if_refused(run_folder, config.output_root) if "output_root" in config else nullcontext()
    with refusable:
        callbacks = Callbacks(config)
        callbacks.on_run_start(config=config, config_name=job.composer.primary)
        try:
            result = run_job(
                task_function=job,
                config=config,
                job_dir_key="hydra.run.dir",
                job_subdir_key=None,
                hydra_context=HydraContext(config_loader=job.composer.loader, callbacks=callbacks),
            )
        except PassThroughError as carrier:
            raise carrier.error from carrier.__cause__
        callbacks.on_run_end(config=config, config_name=job.composer.primary, job_return=result)
        _ = result.return_value  # raises what the job raised


def make_run_folder(config: DictConfig) -> Path:
    """Make the run folder of a composed config before Hydra writes to it, and return its path.

    Raises:
        ConfigError: it cannot be made, or holds another run and nothing is resumed.
    """
    folder = Path()
    try:
        folder = Path(config.hydra.run.dir)
        if "output_root" in config and config.get("resume") is None:
            refuse_used_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
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


def with_sweep_folder(command: ParsedCommand, job: Job) -> tuple[ParsedCommand, Path]:
    """Return a --multirun with a sweep folder that no other command uses, and that folder.

    Raises:
        ConfigError: hydra.sweep.dir holds another sweep or run and nothing is resumed.
    """
    config = job.composer.compose(command.overrides)
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if sweep["dir"].startswith(DEFAULT_SWEEP_DIR):
        folder = new_run_dir(config.output_root, "multirun")
        return replace(command, overrides=[*command.overrides, override("hydra.sweep.dir", folder)]), Path(folder)
    HydraConfig.instance().set_config(config)  # for ${hydra:...}
    chosen = Path(config.hydra.sweep.dir)
    if config.get("resume") is None and not was_requeued():
        refuse_used_folder(chosen, "hydra.sweep.dir")
    return command, chosen


def run_multirun(command: ParsedCommand, job: Job) -> None:
    """Run `job` for each trial of a --multirun, and log a table of them at the end."""
    command, folder = with_sweep_folder(command, job)
    start = _application(job.composer).multirun
    try:
        start(job.composer.primary, job, [*command.overrides, "hydra.mode=MULTIRUN"])
    except PassThroughError as carrier:
        raise carrier.error from carrier.__cause__
    finally:
        for line in describe_jobs(folder, choose=command.repeats is None):
            log.info("%s", line)
        if command.repeats is not None:
            _log_repeats(folder, command.repeats)


def _log_repeats(folder: Path, repeats: Repeats) -> None:
    try:
        for line in write_repeats(folder, repeats):
            log.info("%s", line)
    except OSError as error:
        log.error("the figures of all runs could not be written: %s: %s", error.filename or folder, error.strerror)


def show(command: ParsedCommand, composer: Composer) -> None:
    """Print the answer to --help, --hydra-help, --cfg, --info or --shell-completion."""
    app, options, name = _application(composer), command.options, composer.primary
    options.overrides = list(command.overrides)
    if options.help:
        app.app_help(config_name=name, args_parser=build_parser(), args=options)
    elif options.hydra_help:
        app.hydra_help(config_name=name, args_parser=build_parser(), args=options)
    elif options.cfg:
        app.show_cfg(name, options.overrides, options.cfg, options.package, options.resolve)
    elif options.info:
        app.show_info(options.info, config_name=name, overrides=options.overrides)
    else:
        app.shell_completion(config_name=name, overrides=options.overrides)


def _application(composer: Composer) -> Hydra:
    """Hydra's own application over our loader: it composes and starts jobs, and reads no command line."""
    return Hydra(task_name=composer.verb, config_loader=composer.loader)


def as_typed(tokens: Any) -> list[str]:
    """The tokens of a command as they were given: reading them one by one would resolve `${...}` in them."""
    plain: Any = OmegaConf.to_container(tokens, resolve=False) if isinstance(tokens, ListConfig) else tokens
    return list(plain)


def was_requeued() -> bool:
    """True in a job that Slurm starts again after a preemption, a time limit or a fault of its node."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def log_trial_failure(hydra_config: HydraConf, error: Exception) -> None:
    settings = redact(" ".join(hydra_config.overrides.task))
    info = None if isinstance(error, (ConfigError, RunError)) else sys.exc_info()
    log.error("trial %d failed (%s): %s", hydra_config.job.num, settings, error, exc_info=info)


def _redact_sweep_record(sweep_dir: Path) -> None:
    """Take secrets out of multirun.yaml, which Hydra itself writes before the first job."""
    record = sweep_dir / "multirun.yaml"
    text = record.read_text(encoding="utf-8") if record.is_file() else ""
    if redact(text) != text:
        record.write_text(redact(text), encoding="utf-8")
