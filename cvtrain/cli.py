"""The command line: `cvtrain [verb] key=value ...`. Composes and checks the config, then hands over to the verb."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NoReturn

from cvtrain.config.errors import ConfigError, Problem, RunError
from cvtrain.config.suggestions import closest, closest_keys, did_you_mean
from cvtrain.distributed.errors import LostProcessError, PeerFailedError
from cvtrain.distributed.ranks import rank_of_process
from cvtrain.distributed.session import Session, SharedSession

if TYPE_CHECKING:
    from cvtrain.config.compose import Composer
    from cvtrain.job import Job

# What a help template may ask of Hydra, which takes it 2 s to answer; ours asks for nothing.
HYDRA_HELP_NAMES = ("$FLAGS_HELP", "$HYDRA_CONFIG_GROUPS", "$APP_CONFIG_GROUPS", "$CONFIG")
EXIT_OK, EXIT_FAILED, EXIT_WRONG_COMMAND, EXIT_INTERRUPTED = 0, 1, 2, 130


def run_train(config: Any, run_dir: Path, overrides: list[str], world: Any = None) -> float | None:
    from cvtrain.train import train

    options = {} if world is None else {"world": world}
    result = train(config, run_dir=run_dir, overrides=overrides, **options)
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return result.monitor


def run_evaluate(config: Any, run_dir: Path, overrides: list[str]) -> float | None:
    from cvtrain.evaluate import evaluate

    return evaluate(config, run_dir=run_dir, overrides=overrides).monitor


def run_cache(config: Any, run_dir: Path, overrides: list[str]) -> None:
    from cvtrain.cache import cache

    cache(config)


def run_sweep(search: Any, run_dir: Path, overrides: list[str]) -> float | None:
    from cvtrain.config.sweep import Engine

    if search.config.engine is Engine.wandb:
        from cvtrain.sweep.wandb_engine import search_with_wandb

        exit_code = search_with_wandb(search)
    else:
        from cvtrain.sweep.local import search_locally

        exit_code = search_locally(search)
    if exit_code:
        raise SystemExit(exit_code)
    return None


# A verb's config is conf/<verb>.yaml over the dataclass in cvtrain.config.root.VERBS. Its task gets the typed config,
# the run folder and the overrides, imports what it needs, and returns the number that a sweeper optimises.
VERBS: dict[str, Callable[[Any, Path, list[str]], float | None]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "cache": run_cache,
    # Gets a `cvtrain.sweep.search.Search` in the config's place, and the overrides of its trials.
    "sweep": run_sweep,
}


@dataclass(frozen=True)
class Command:
    """A command line taken apart.

    `flags` are Hydra's, as given; `options` the same as argparse reads them; `overrides` key=value tokens;
    `trial_overrides` those of a search's trials.
    """

    verb: str
    flags: list[str]
    options: argparse.Namespace
    overrides: list[str]
    trial_overrides: tuple[str, ...] = ()

    @property
    def only_shows(self) -> bool:
        """True for commands that print something and start no run."""
        options = self.options
        return bool(options.help or options.hydra_help or options.cfg or options.info or options.shell_completion)


def run(arguments: list[str], *, checked: bool = False) -> int:
    """Run one command line and return its exit status.

    0; 1 if the data or the numbers ended the run; 2 for a wrong command; 130 when interrupted.

    A training command that a search has `checked` is composed once instead of thrice, which saves it 0.3 s.

    Any other exception is a bug, ours or of the user's own class, and is raised with its full traceback.
    """
    if arguments == ["--version"]:
        import cvtrain

        print(f"cvtrain {cvtrain.__version__}")
        return EXIT_OK
    try:
        rank = rank_of_process()
    except ConfigError as error:
        _print_problems(error)
        return EXIT_WRONG_COMMAND
    if rank is None:
        return _answer(Session(), lambda: _run(arguments, Session(), checked=checked))
    from cvtrain.launch import follow_parent

    follow_parent()
    session = SharedSession(rank)
    if not rank.is_main:
        from cvtrain.joining import join

        return _answer(session, lambda: join(session))
    status = EXIT_FAILED
    try:
        status = _answer(session, lambda: _run(arguments, session, checked=checked))
    finally:
        session.end(status)
    return status


def _answer(session: Session, task: Callable[[], int | None]) -> int:
    """Run `task` and return the exit status; of several processes the first that fails says why."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return task() or EXIT_OK
    except (ConfigError, RunError) as error:
        status = EXIT_WRONG_COMMAND if isinstance(error, ConfigError) else EXIT_FAILED
        if isinstance(error, PeerFailedError) or not session.claims(status):
            return session.exit_code()
        if wants_traceback:
            traceback.print_exc()
        _print_problems(error)
        _report_trial(status, error)
        return status
    except KeyboardInterrupt:
        if session.claims(EXIT_INTERRUPTED):
            print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as request:
        session.claims(request.code if isinstance(request.code, int) else EXIT_FAILED)
        raise
    except LostProcessError as error:
        if session.claims(EXIT_FAILED):
            print(f"error: {error}", file=sys.stderr)
            _report_trial(EXIT_FAILED, error)
        return session.exit_code()
    except Exception as error:
        if not session.claims(EXIT_FAILED):
            return session.exit_code()
        _report_trial(EXIT_FAILED, error)
        raise


def _report_trial(exit_code: int, error: Exception) -> None:
    """Mark a trial of a W&B sweep as failed where it failed before it could say so itself."""
    from cvtrain.config.redact import redact
    from cvtrain.config.trial import is_trial

    rank = rank_of_process()
    if is_trial() and (rank is None or rank.is_main):
        from cvtrain.loggers.wandb_trial import report_failure

        report_failure(exit_code, redact(f"{error}" or type(error).__name__))


def _run(arguments: list[str], session: Session, *, checked: bool = False) -> None:
    from cvtrain.config.loading import check_command, explained
    from cvtrain.config.resolvers import register_resolvers
    from cvtrain.config.root import register_schemas

    register_schemas()
    if "COMP_LINE" in os.environ and any(token in ("-sc", "--shell-completion") for token in arguments):
        from cvtrain.completion import complete

        complete(arguments)
        return
    command = parse_command(_with_sweeps_parameters(arguments))
    options = command.options
    composer = build_composer(command.verb, options, command.overrides)
    register_resolvers(composer)
    if options.help:
        with explained(composer, command.overrides):
            template = composer.compose(command.overrides).hydra.help.template
        if not any(name in template for name in HYDRA_HELP_NAMES):
            print(Template(template).substitute())
            return
    if command.only_shows or command.verb != "train":
        session.end(EXIT_OK)  # of several processes, the others have nothing to do
    if command.only_shows:
        with explained(composer, command.overrides):
            _hand_over(command, composer, session)
        return
    if command.verb == "sweep":
        _search(command, composer)
        return
    if checked:
        _run_checked(command, composer, session)
        return
    if not options.experimental_rerun:  # which brings a config of its own
        check_command(composer, command.overrides, options.multirun)
    _hand_over(command, composer, session)


def _search(command: Command, composer: "Composer") -> None:
    """Check all that a search says, then hand it to its engine. Its trials are commands of their own."""
    from cvtrain.sweep.search import plan_search

    if command.options.multirun:
        raise ConfigError("--multirun", rule="a search makes its own runs", remedy="leave --multirun out")
    trial_composer = build_composer("train", command.options, list(command.trial_overrides))
    search = plan_search(composer, trial_composer, command.overrides, command.trial_overrides, command.flags)
    VERBS["sweep"](search, search.folder, list(search.fixed))


def _with_sweeps_parameters(arguments: list[str]) -> list[str]:
    """The command of a W&B sweep's trial with the sweep's parameters as overrides; any other command as it is."""
    from cvtrain.config.trial import current_trial, with_parameters

    verb = next((word for word in arguments if word in VERBS), "train")
    trial = current_trial() if verb == "train" else None
    return arguments if trial is None else with_parameters(arguments, trial)


def parse_command(arguments: list[str]) -> Command:
    """Take a command line apart; raises ConfigError for an unknown verb or flag."""
    from hydra._internal.utils import get_args_parser

    from cvtrain.config.diagnosis import bare_word
    from cvtrain.config.overrides import open_up
    from cvtrain.config.resuming import going_on_as_trial, resuming_tokens
    from cvtrain.config.sweep_files import split_search

    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign,assignment]
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(problems=[_unknown_flag(parser, flag) for flag in unknown])
    words = list(options.overrides)
    verb = words.pop(0) if words and words[0] in VERBS else "train"
    wrong = [word for word in words if "=" not in word and not word.startswith(("~", "-"))]
    if wrong and not options.shell_completion:
        composer = build_composer(verb, options, words)
        raise ConfigError(problems=[bare_word(composer, word) for word in wrong])
    flags = list(arguments)
    for word in options.overrides:
        flags.remove(word)
    if verb == "sweep":
        own, trials = split_search(words)
        return Command(verb, flags, options, own, tuple(open_up(token, "train") for token in trials))
    tokens = [open_up(word, verb) for word in words]
    if verb == "train":
        tokens = going_on_as_trial(tokens, options.multirun)
        # Each trial of a --multirun finds its own, in its folder below hydra.sweep.dir.
        tokens = resuming_tokens(
            tokens,
            lambda: None if options.multirun else _newest_run(build_composer(verb, options, tokens), tokens),
        )
    return Command(verb, flags, options, tokens)


def _newest_run(composer: "Composer", tokens: list[str]) -> Path | None:
    """The folder that `resume=auto` goes on in: that of hydra.run.dir, or the newest unfinished run of the name."""
    from cvtrain.config.diagnosis import COMPOSITION_ERRORS
    from cvtrain.config.resuming import unfinished_run

    chosen = next((token.partition("=")[2] for token in tokens if token.startswith("hydra.run.dir=")), None)
    if chosen is not None:
        return Path(chosen)
    try:
        cfg = composer.compose(tokens)
        return unfinished_run(cfg.output_root, cfg.name)
    except COMPOSITION_ERRORS:  # told later, with what is wrong
        return None


def build_composer(verb: str, options: argparse.Namespace, overrides: list[str]) -> "Composer":
    """The composer that sees what Hydra will see: the folders of the flags, and of hydra.searchpath."""
    from cvtrain.config.compose import Composer

    search_path = next((token for token in overrides if token.startswith("hydra.searchpath=")), None)
    return Composer(verb, options.config_dir, options.config_path, options.config_name, search_path)


def _refuse_flags(message: str) -> NoReturn:
    raise ConfigError(rule=message, remedy="cvtrain --help shows what there is")


def _unknown_flag(parser: argparse.ArgumentParser, flag: str) -> Problem:
    from cvtrain.config.schema import settings_by_key

    name, equals, value = flag.partition("=")
    known = [option for action in parser._actions for option in action.option_strings]
    if equals:
        keys = settings_by_key("train")
        key = name.lstrip("-")
        close = [key] if key in keys else closest_keys(key, keys) or [key]
        remedy = f"settings are written without dashes: {close[0]}={value}"
    else:
        remedy = did_you_mean(closest(name, known)) or "settings are written key=value, without dashes"
    return Problem(flag, rule="no such flag", remedy=remedy)


def _hand_over(command: Command, composer: "Composer", session: Session) -> None:
    """Let Hydra run the checked command: it makes the run folder, sets up logging and calls the verb."""
    import hydra
    from omegaconf import DictConfig

    from cvtrain.config.location import conf_dir
    from cvtrain.job import Refused

    job = _build_job(command, composer, session)

    def task(cfg: DictConfig) -> float | None:  # Hydra wants a function
        return job(cfg)

    with _hydra_arguments(command):
        try:
            hydra.main(config_path=str(conf_dir()), config_name=command.verb, version_base="1.3")(task)()
        except Refused as refused:
            raise refused.error from refused.__cause__


def _build_job(command: Command, composer: "Composer", session: Session) -> "Job":
    from cvtrain.job import Job
    from cvtrain.starting import TrainTask

    verb = VERBS[command.verb]
    task = TrainTask(verb, tuple(command.flags), session) if command.verb == "train" else verb
    return Job(task, composer, session=session)


def _run_checked(command: Command, composer: "Composer", session: Session) -> None:
    """What `_hand_over` does, without Hydra's own reading of the command line."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import run_job
    from hydra.types import HydraContext

    from cvtrain.config.loading import explained
    from cvtrain.job import Refused

    with explained(composer, command.overrides):
        config = composer.compose(command.overrides)
    HydraConfig.instance().set_config(config)
    context = HydraContext(config_loader=composer.loader, callbacks=Callbacks())
    try:
        result = run_job(
            task_function=_build_job(command, composer, session),
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=context,
        )
    except Refused as refused:
        raise refused.error from refused.__cause__
    _ = result.return_value  # raises what the job raised


@contextmanager
def _hydra_arguments(command: Command) -> Iterator[None]:
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


def _print_problems(error: ConfigError | RunError) -> None:
    for problem in error.problems if isinstance(error, ConfigError) else [error]:
        print(f"error: {problem}", file=sys.stderr)
