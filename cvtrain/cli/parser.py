"""A command line taken apart: verb, flags of Hydra's, overrides, and the run that `resume=auto` means."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cvtrain.config.errors import ConfigError

if TYPE_CHECKING:
    from cvtrain.config.composer import Composer


@dataclass(frozen=True)
class ParsedCommand:
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
    def is_info_only(self) -> bool:
        """True for commands that print something and start no run."""
        options = self.options
        return bool(options.help or options.hydra_help or options.cfg or options.info or options.shell_completion)


def apply_wandb_parameters(arguments: list[str]) -> list[str]:
    """The command of a W&B sweep's trial with the sweep's parameters as overrides; any other command as it is."""
    from cvtrain.config.schema.root import VERBS
    from cvtrain.config.wandb_trial import current_trial, with_parameters

    verb = next((word for word in arguments if word in VERBS), "train")
    trial = current_trial() if verb == "train" else None
    return arguments if trial is None else with_parameters(arguments, trial)


def parse_command(arguments: list[str]) -> ParsedCommand:
    """Take a command line apart; raises ConfigError for an unknown verb or flag."""
    from hydra._internal.utils import get_args_parser

    from cvtrain.config.bare_words import bare_word, unknown_flags
    from cvtrain.config.overrides import normalize_override
    from cvtrain.config.resume import default_resume_for_trial, expand_resume
    from cvtrain.config.schema.root import VERBS
    from cvtrain.config.sweep_files import split_search

    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign,assignment]
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        raise ConfigError(problems=unknown_flags(arguments, unknown, known))
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
        own = [normalize_override(token, verb) for token in own]
        return ParsedCommand(verb, flags, options, own, tuple(normalize_override(token, "train") for token in trials))
    tokens = [normalize_override(word, verb, multirun=_is_multirun(options, words)) for word in words]
    if verb == "train":
        tokens = default_resume_for_trial(tokens, options.multirun)
        # Each trial of a --multirun finds its own, in its folder below hydra.sweep.dir.
        tokens = expand_resume(
            tokens,
            lambda: None if options.multirun else _newest_run(build_composer(verb, options, tokens), tokens),
        )
    return ParsedCommand(verb, flags, options, tokens)


def _is_multirun(options: argparse.Namespace, words: list[str]) -> bool:
    return bool(options.multirun) or any(word.upper() == "HYDRA.MODE=MULTIRUN" for word in words)


def _newest_run(composer: "Composer", tokens: list[str]) -> Path | None:
    """The folder that `resume=auto` goes on in: that of hydra.run.dir, or the newest unfinished run of the name."""
    from cvtrain.config.explain import COMPOSITION_ERRORS
    from cvtrain.config.overrides import unquoted
    from cvtrain.config.resume import unfinished_run

    chosen = next((token.partition("=")[2] for token in tokens if token.startswith("hydra.run.dir=")), None)
    if chosen is not None:
        return Path(unquoted(chosen))
    try:
        cfg = composer.compose(tokens)
        return unfinished_run(cfg.output_root, cfg.name)
    except COMPOSITION_ERRORS:  # told later, with what is wrong
        return None


def build_composer(verb: str, options: argparse.Namespace, overrides: list[str]) -> "Composer":
    """The composer that sees what Hydra will see: the folders of the flags, and of hydra.searchpath."""
    from cvtrain.config.composer import Composer

    search_path = next((token for token in overrides if token.startswith("hydra.searchpath=")), None)
    return Composer(verb, options.config_dir, options.config_path, options.config_name, search_path)


def _refuse_flags(message: str) -> NoReturn:
    raise ConfigError(rule=message, remedy="cvtrain --help shows what there is")
