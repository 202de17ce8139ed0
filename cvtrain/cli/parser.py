"""A command line taken apart: verb, flags, overrides, and the run that `resume=auto` means."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cvtrain.config.errors import ConfigError

if TYPE_CHECKING:
    from cvtrain.config.composer import Composer
    from cvtrain.config.repeats import Repeats


# Settings of `cvtrain auto` itself; others are those of its runs.
AUTO_KEYS = ("budget", "resume", "log_level")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
# The flags of Hydra that make sense here, under its names: (names, arguments of `add_argument`).
FLAGS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--help", "-h"), {"action": "store_true", "help": "help of the verb"}),
    (("--hydra-help",), {"action": "store_true", "help": "help of Hydra, with all flags"}),
    (("--version",), {"action": "store_true", "help": "version of cvtrain"}),
    (("--cfg", "-c"), {"choices": ["job", "hydra", "all"], "help": "print the config instead of running"}),
    (("--resolve",), {"action": "store_true", "help": "with --cfg: resolve interpolations"}),
    (("--package", "-p"), {"help": "with --cfg: print this section only"}),
    (("--run", "-r"), {"action": "store_true", "help": "one run (the default)"}),
    (("--multirun", "-m"), {"action": "store_true", "help": "run every combination of comma-separated values"}),
    (("--shell-completion", "-sc"), {"action": "store_true", "help": "install=bash, fish or zsh: print the script"}),
    (("--config-path", "-cp"), {"help": "folder in the place of conf/"}),
    (("--config-name", "-cn"), {"help": "primary config in the place of the verb's"}),
    (("--config-dir", "-cd"), {"help": "folder with config groups of your own"}),
    (("--info", "-i"), {"nargs": "?", "const": "all", "choices": INFO, "help": "how the config is put together"}),
)


@dataclass(frozen=True)
class ParsedCommand:
    """A command line taken apart.

    `flags` are as given; `options` the same as argparse reads them; `overrides` key=value tokens;
    `trial_overrides` those of the runs of a search; `repeats` what `seeds=N` or `folds=K` says.
    """

    verb: str
    flags: list[str]
    options: argparse.Namespace
    overrides: list[str]
    trial_overrides: tuple[str, ...] = ()
    repeats: "Repeats | None" = None

    @property
    def is_info_only(self) -> bool:
        """True for commands that print something and start no run."""
        options = self.options
        return bool(options.help or options.hydra_help or options.cfg or options.info or options.shell_completion)


def expand_help(arguments: list[str]) -> list[str]:
    """Return `help` and `help VERB` as `--help` and `VERB --help`, other commands as they are."""
    if arguments[:1] != ["help"]:
        return arguments
    return [*(word for word in arguments[1:] if word != "help"), "--help"]


def apply_wandb_parameters(arguments: list[str]) -> list[str]:
    """The command of a W&B sweep's trial with the sweep's parameters as overrides; any other command as it is."""
    from cvtrain.config.schema.root import VERBS
    from cvtrain.config.wandb_trial import current_trial, with_parameters

    verb = next((word for word in arguments if word in VERBS), "train")
    trial = current_trial() if verb == "train" else None
    return arguments if trial is None else with_parameters(arguments, trial)


def parse_command(arguments: list[str]) -> ParsedCommand:
    """Take a command line apart; raises ConfigError for an unknown verb or flag."""
    from cvtrain.config.hints import explain_word, unknown_flags
    from cvtrain.config.overrides import normalize_override
    from cvtrain.config.repeats import take_repeats
    from cvtrain.config.resume import default_resume_for_trial, expand_resume
    from cvtrain.config.schema.root import VERBS
    from cvtrain.config.sweep_files import split_search

    options, unknown = build_parser().parse_known_intermixed_args(arguments)
    if unknown:
        known = [name for names, _ in FLAGS for name in names]
        raise ConfigError(problems=unknown_flags(arguments, unknown, known))
    _check_combination(options)
    words = list(options.overrides)
    verb = words.pop(0) if words and words[0] in VERBS else "train"
    if verb in ("report", "reproduce"):
        words = _with_runs(words, verb)
    wrong = [word for word in words if "=" not in word and not word.startswith(("~", "-"))]
    if wrong and not options.shell_completion:
        composer = build_composer(verb, options, words)
        raise ConfigError(problems=[explain_word(composer, word) for word in wrong])
    flags = list(arguments)
    for word in options.overrides:
        flags.remove(word)
    if verb == "sweep":
        own, trials = split_search(words)
        own = [normalize_override(token, verb) for token in own]
        return ParsedCommand(verb, flags, options, own, tuple(normalize_override(token, "train") for token in trials))
    if verb == "auto":
        is_own = {word: word.partition("=")[0] in AUTO_KEYS or word.startswith("auto.") for word in words}
        tokens = [normalize_override(word, verb) for word in words if is_own[word]]
        runs = (normalize_override(word, "train") for word in words if not is_own[word])
        return ParsedCommand(verb, flags, options, tokens, tuple(runs))
    tokens = [normalize_override(word, verb, multirun=_is_multirun(options, words)) for word in words]
    command = ParsedCommand(verb, flags, options, tokens)
    repeats = None
    if verb == "train" and not command.is_info_only:
        repeats, tokens = take_repeats(tokens)
        if repeats is not None:
            tokens = _repeated(repeats, tokens, options)
    if verb == "train":
        tokens = default_resume_for_trial(tokens, options.multirun)
        # Each trial of a --multirun finds its own, in its folder below hydra.sweep.dir.
        tokens = expand_resume(
            tokens,
            lambda: None if options.multirun else _newest_run(build_composer(verb, options, tokens), tokens),
        )
    return replace(command, overrides=tokens, repeats=repeats)


def _repeated(repeats: "Repeats", tokens: list[str], options: argparse.Namespace) -> list[str]:
    """Return the tokens of the --multirun that `repeats` stands for, and make the command one.

    Raises:
        ConfigError: a setting has several values without --multirun.
    """
    from cvtrain.config.explain import COMPOSITION_ERRORS, sweep_problems
    from cvtrain.config.repeats import expand_repeats

    composer = build_composer("train", options, tokens)
    if not options.multirun and (problems := sweep_problems(composer, tokens)):
        raise ConfigError(problems=problems)

    def first_seed() -> int:
        one_each = [token for token in tokens if not composer.parse(token).is_sweep_override()]
        try:
            return int(composer.compose(one_each).seed)
        except COMPOSITION_ERRORS:  # explained when the command is checked
            return 0

    options.multirun = True
    return expand_repeats(repeats, tokens, first_seed)


def _with_runs(words: list[str], verb: str) -> list[str]:
    """Return the words of `cvtrain report` or `reproduce` with the run folders among them as a setting.

    Raises:
        ConfigError: there are several for `reproduce`.
    """
    from cvtrain.config.overrides import override

    runs = [word for word in words if "=" not in word or Path(word).is_dir()]
    others = [word for word in words if word not in runs]
    if verb == "reproduce" and len(runs) > 1:
        raise ConfigError("run", " ".join(runs), "one run at a time is repeated", "name one folder")
    if not runs:
        return others
    return [*others, override("runs", runs) if verb == "report" else override("run", runs[0])]


def _is_multirun(options: argparse.Namespace, words: list[str]) -> bool:
    return bool(options.multirun) or any(word.upper() == "HYDRA.MODE=MULTIRUN" for word in words)


def _newest_run(composer: "Composer", tokens: list[str]) -> Path | None:
    """Folder that `resume=auto` resumes: that of hydra.run.dir, or the newest unfinished run of the name."""
    from cvtrain.config.explain import COMPOSITION_ERRORS
    from cvtrain.config.overrides import unquoted
    from cvtrain.config.resume import unfinished_run

    chosen = next((token.partition("=")[2] for token in tokens if token.startswith("hydra.run.dir=")), None)
    if chosen is not None:
        return Path(unquoted(chosen))
    try:
        cfg = composer.compose(tokens)
        return unfinished_run(cfg.output_root, cfg.name)
    except COMPOSITION_ERRORS:  # explained when the command is checked
        return None


def build_composer(verb: str, options: argparse.Namespace, overrides: list[str]) -> "Composer":
    """Return the composer over the folders of the flags and of hydra.searchpath."""
    from cvtrain.config.composer import Composer

    search_path = next((token for token in overrides if token.startswith("hydra.searchpath=")), None)
    return Composer(verb, options.config_dir, options.config_path, options.config_name, search_path)


class _Parser(argparse.ArgumentParser):
    """Raises a ConfigError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(rule=message, remedy="cvtrain --help lists the flags")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of flags; Hydra's own (1.3.8) fails on Python 3.14, which checks every help text."""
    parser = _Parser(prog="cvtrain", add_help=False)
    parser.add_argument("overrides", nargs="*", help="key=value settings")
    for names, settings in FLAGS:
        parser.add_argument(*names, **settings)
    return parser


def _check_combination(options: argparse.Namespace) -> None:
    chosen = {
        "--run": options.run,
        "--multirun": options.multirun,
        "--cfg": options.cfg,
        "--info": options.info,
        "--shell-completion": options.shell_completion,
    }
    given = [name for name, value in chosen.items() if value]
    if len(given) > 1:
        raise ConfigError(" ".join(given), rule="exclude each other", remedy="keep one of them")
    if options.resolve and not (options.cfg or options.help):
        raise ConfigError("--resolve", rule="has no effect by itself", remedy="add --cfg job")
