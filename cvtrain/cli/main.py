"""The command line: `cvtrain [verb] key=value ...`. Composes and checks the config, then hands over to the verb."""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NoReturn

from cvtrain import __version__
from cvtrain.cli.parser import ParsedCommand, apply_wandb_parameters, build_composer, expand_help, parse_command
from cvtrain.cli.verbs import EXIT_FAILED, VERBS
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.text import display_message
from cvtrain.distributed.env import drop_srun_rank, rank_from_env
from cvtrain.distributed.errors import LostProcessError, PeerFailedError
from cvtrain.distributed.rendezvous import DistributedRendezvous, Rendezvous

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cvtrain.config.composer import Composer

log = logging.getLogger(__name__)

# Placeholders of a help template that Hydra fills in, which takes 2 s; ours has none.
HYDRA_HELP_NAMES = ("$FLAGS_HELP", "$HYDRA_CONFIG_GROUPS", "$APP_CONFIG_GROUPS", "$CONFIG")
SECONDS_TO_EXIT = 2.0
EXIT_OK, EXIT_WRONG_COMMAND, EXIT_INTERRUPTED = 0, 2, 130


def main(argv: list[str] | None = None, *, prevalidated: bool = False) -> NoReturn:
    """Run the words after `cvtrain`, by default those of this process, and exit with the command's status.

    After a signal, libraries have `SECONDS_TO_EXIT` at exit (W&B waits there for its server); then the signal itself
    ends the process. A trial of a W&B sweep ends so at once: its agent counts exit codes as failures, and shuts down
    after three.
    """
    try:
        status = run(sys.argv[1:] if argv is None else argv, prevalidated=prevalidated)
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
    from cvtrain.runtime.signals import is_signal_exit

    if is_signal_exit(status):
        from cvtrain.config.wandb_trial import is_trial

        number = status - 128
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        sys.stdout.flush()
        if is_trial() and rank_from_env() is None:
            signal.raise_signal(number)
        timer = threading.Timer(SECONDS_TO_EXIT, signal.raise_signal, [number])
        timer.daemon = True
        timer.start()
    sys.exit(status)


def run(arguments: list[str], *, prevalidated: bool = False) -> int:
    """Run one command line and return its exit status.

    0; 1 if the data or the numbers ended the run, or `reproduce` found a difference; 2 for a wrong command; 3 if
    `predict` could not read all images, or `check` found what makes figures wrong; 130 when interrupted.

    A training command that a search has checked (`prevalidated`) is not checked again.

    Any other exception is a bug, ours or of the user's own class, and is raised with its full traceback.
    """
    if "--version" in arguments:
        print(f"cvtrain {__version__}")
        return EXIT_OK
    try:
        if "sweep" in arguments:
            drop_srun_rank()
        rank = rank_from_env()
    except ConfigError as error:
        _print_problems(error)
        return EXIT_WRONG_COMMAND
    if rank is None:
        return exit_status_of(Rendezvous(), lambda: dispatch(arguments, Rendezvous(), prevalidated=prevalidated))
    from cvtrain.distributed.launcher import exit_with_parent

    exit_with_parent()
    rendezvous = DistributedRendezvous(rank)
    if not rank.is_main_process:
        from cvtrain.cli.rank_worker import run_rank

        return exit_status_of(rendezvous, lambda: run_rank(rendezvous))
    status = EXIT_FAILED
    try:
        status = exit_status_of(rendezvous, lambda: dispatch(arguments, rendezvous, prevalidated=prevalidated))
    finally:
        rendezvous.end(status)
    return status


def exit_status_of(rendezvous: Rendezvous, task: Callable[[], int | None]) -> int:
    """Run `task` and return the exit status; of several ranks the first that fails reports why."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return task() or EXIT_OK
    except (ConfigError, RunError) as error:
        status = EXIT_WRONG_COMMAND if isinstance(error, ConfigError) else EXIT_FAILED
        if isinstance(error, PeerFailedError) or not rendezvous.claim_failure(status):
            return rendezvous.exit_code()
        if wants_traceback:
            traceback.print_exc()
        _print_problems(error)
        _report_trial(status, error)
        return status
    except KeyboardInterrupt:
        if rendezvous.claim_failure(EXIT_INTERRUPTED):
            print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as request:
        rendezvous.claim_failure(request.code if isinstance(request.code, int) else EXIT_FAILED)
        raise
    except LostProcessError as error:
        if rendezvous.claim_failure(EXIT_FAILED):
            print(f"error: {display_message(str(error))}", file=sys.stderr)
            _report_trial(EXIT_FAILED, error)
        return rendezvous.exit_code()
    except Exception as error:
        if not rendezvous.claim_failure(EXIT_FAILED):
            return rendezvous.exit_code()
        _report_trial(EXIT_FAILED, error)
        raise


def _report_trial(exit_code: int, error: Exception) -> None:
    """Mark a trial of a W&B sweep as failed if it failed before its W&B run was opened."""
    from cvtrain.config.redact import redact
    from cvtrain.config.wandb_trial import is_trial

    rank = rank_from_env()
    if is_trial() and (rank is None or rank.is_main_process):
        from cvtrain.loggers.wandb_trial import report_failure

        report_failure(exit_code, redact(f"{error}" or type(error).__name__))


def dispatch(arguments: list[str], rendezvous: Rendezvous, *, prevalidated: bool = False) -> None:
    from cvtrain.config.load import check_command, check_files, compose_or_explain, explaining_errors
    from cvtrain.config.overrides import duplicate_keys
    from cvtrain.config.resolvers import register_resolvers
    from cvtrain.config.schema.root import register_schemas

    register_schemas()
    if "COMP_LINE" in os.environ and any(token in ("-sc", "--shell-completion") for token in arguments):
        from cvtrain.cli.completion import complete

        complete(arguments)
        return
    arguments = expand_help(arguments)
    if arguments[:1] == ["list"]:
        from cvtrain.commands.list_options import list_options

        list_options(arguments[1:])
        return
    command = parse_command(apply_wandb_parameters(arguments))
    options = command.options
    twice = {} if prevalidated else duplicate_keys(options.overrides)
    for key, word in twice.items():
        print(display_message(f"warning: {key} is given more than once: {word} counts"), file=sys.stderr)
    composer = build_composer(command.verb, options, command.overrides)
    register_resolvers(composer)
    if options.help:
        with explaining_errors(composer, command.overrides):
            template = composer.compose(command.overrides).hydra.help.template
        if not any(name in template for name in HYDRA_HELP_NAMES):
            with contextlib.suppress(BrokenPipeError):  # a reader such as head that has seen enough
                print(Template(template).substitute(), flush=True)
            return
    if command.is_info_only or command.verb != "train":
        rendezvous.end(EXIT_OK)  # of several processes, the others have nothing to do
    if command.is_info_only:
        from cvtrain.cli.hydra_job import show

        if options.cfg:
            check_files(composer, command.overrides)
        with explaining_errors(composer, command.overrides):
            show(command, composer)
        return
    if command.verb == "sweep":
        run_sweep_command(command, composer)
        return
    if command.verb == "auto":
        run_auto_command(command, composer)
        return
    check = compose_or_explain if prevalidated else partial(check_command, multirun=options.multirun)
    _run_job(command, composer, rendezvous, check(composer, command.overrides))


def _run_job(command: ParsedCommand, composer: "Composer", rendezvous: Rendezvous, config: "DictConfig | None") -> None:
    """Run the job of `config`; None: the trials of a --multirun."""
    from cvtrain.cli.hydra_job import Job, run_composed, run_multirun
    from cvtrain.cli.multi_process import TrainTask

    verb = VERBS[command.verb]
    task = TrainTask(verb, tuple(command.flags), rendezvous) if command.verb == "train" else verb
    job = Job(task, composer, rendezvous=rendezvous)
    if config is None:
        run_multirun(command, job)
    else:
        run_composed(job, config)


def run_sweep_command(command: ParsedCommand, composer: "Composer") -> None:
    """Check a search, then run it by its engine. Its trials are commands of their own."""
    from cvtrain.sweep.search import plan_search

    if command.options.multirun:
        raise ConfigError("--multirun", rule="a search makes its own runs", remedy="leave --multirun out")
    trial_composer = build_composer("train", command.options, list(command.trial_overrides))
    search = plan_search(composer, trial_composer, command.overrides, command.trial_overrides, command.flags)
    VERBS["sweep"](search, search.folder, list(search.fixed))


def run_auto_command(command: ParsedCommand, composer: "Composer") -> None:
    """Check a `cvtrain auto` and the settings of its runs, then run it."""
    from cvtrain.config.load import check_command, compose_or_explain, typed_config
    from cvtrain.config.resolvers import register_resolvers
    from cvtrain.runtime.console import ConsoleHandler

    if command.options.multirun:
        raise ConfigError("--multirun", rule="cvtrain auto makes its own runs", remedy="leave --multirun out")
    config = typed_config(compose_or_explain(composer, command.overrides), composer, command.overrides)
    run_composer = build_composer("train", command.options, list(command.trial_overrides))
    register_resolvers(run_composer)
    check_command(run_composer, list(command.trial_overrides), False)
    logging.getLogger().addHandler(ConsoleHandler())
    logging.getLogger("cvtrain").setLevel(config.log_level)
    VERBS["auto"]((config, composer.config_dir), Path(), list(command.trial_overrides))


def _print_problems(error: ConfigError | RunError) -> None:
    for problem in error.problems if isinstance(error, ConfigError) else [error]:
        print(f"error: {display_message(str(problem))}", file=sys.stderr)
