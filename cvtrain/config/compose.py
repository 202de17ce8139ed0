"""`compose`: the command line's config for Python, and the way back from a config to overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cvtrain.config.composer import Composer
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.explain import sweep_problems
from cvtrain.config.hints import explain_word
from cvtrain.config.load import compose_or_explain, typed_config
from cvtrain.config.overrides import normalize_override, override
from cvtrain.config.resolvers import register_resolvers
from cvtrain.config.resume import expand_resume, unfinished_run
from cvtrain.config.schema.root import Config, register_schemas
from cvtrain.config.serialize import flatten, schema_names, to_plain


def compose(*overrides: str, config_dir: str | None = None) -> Config:
    """Return the typed, checked config of the command `cvtrain OVERRIDES`.

    Args:
        overrides: as on the command line, such as `"data=custom"` and `"optimizer.lr=0.01"`. `resume=PATH` brings the
            overrides of that run, and `trainer.epochs=+N` counts from its epochs.
        config_dir: a folder with options and experiments of your own, as `--config-dir`.

    Raises:
        ConfigError: everything that is wrong, in the words of the command line.
    """
    config = compose_verb("train", overrides, config_dir=config_dir)[0]
    assert isinstance(config, Config)
    return config


def compose_verb(verb: str, overrides: Sequence[str], *, config_dir: str | None = None) -> tuple[Any, list[str]]:
    """The config of any verb that makes no sweep, and all overrides that made it: those of a resumed run included.

    Raises:
        ConfigError: as `compose`.
    """
    register_schemas()
    search_path = next((token for token in overrides if token.startswith("hydra.searchpath=")), None)
    composer = Composer(verb, config_dir=config_dir, search_path=search_path)
    register_resolvers(composer)
    problems = [explain_word(composer, word) for word in overrides if "=" not in word and not word.startswith("~")]
    problems += [_hydra_problem(token) for token in overrides if token.startswith("hydra") and token != search_path]
    if problems:
        raise ConfigError(problems=problems)
    tokens = [normalize_override(token, verb) for token in overrides]
    if verb == "train":
        tokens = expand_resume(tokens, lambda: _newest_run(composer, tokens))
    cfg = compose_or_explain(composer, tokens)
    if problems := sweep_problems(composer, tokens):
        raise ConfigError(problems=problems)
    return typed_config(cfg, composer, tokens), tokens


def _hydra_problem(token: str) -> Problem:
    return Problem(
        token.partition("=")[0],
        rule="has no effect from Python, where Hydra runs no job",
        remedy="run_dir= of cvtrain.train sets the run folder, config_dir= adds files of your own",
    )


def _newest_run(composer: Composer, tokens: list[str]) -> Path | None:
    cfg = compose_or_explain(composer, tokens)
    return unfinished_run(cfg.output_root, cfg.name)


def overrides_of(config: Config) -> list[str]:
    """Return overrides that compose to `config`, however it was made or changed.

    Raises:
        ConfigError: a value breaks a rule.
        ValueError: no command gives this config.
    """
    register_schemas()
    composer = Composer("train")
    register_resolvers(composer)
    loggers = [name for name, logger in vars(config.logger).items() if logger is not None]
    schemas = schema_names(config)
    choices = [_choice(composer, group, schema, getattr(config, group)) for group, schema in schemas.items()]
    choices.append(f"logger=[{','.join(loggers)}]")
    wanted, composed = flatten(to_plain(config)), _composed_values(composer, choices)
    labels = {f"{group}.name" for group in schemas}  # follow from the choice, and cannot be set
    changed = [
        override(key, value)
        for key, value in wanted.items()
        if key not in labels and (key not in composed or composed[key] != value)
    ]
    tokens = [*choices, *(normalize_override(token, "train") for token in changed)]
    differing = _differing_keys(composer, tokens, wanted)
    # A recipe gives way to what is set, also to a default.
    tokens += [normalize_override(override(key, wanted[key]), "train") for key in differing if key in wanted]
    if differing and (differing := _differing_keys(composer, tokens, wanted)):
        raise ValueError(f"no overrides give this config: {', '.join(differing)}")
    return tokens


def _differing_keys(composer: Composer, tokens: list[str], wanted: dict[str, Any]) -> list[str]:
    cfg = compose_or_explain(composer, tokens)
    again = flatten(to_plain(typed_config(cfg, composer, tokens)))
    return sorted(key for key in wanted.keys() | again.keys() if wanted.get(key) != again.get(key))


def _composed_values(composer: Composer, tokens: list[str]) -> dict[str, Any]:
    """The values of a config by dotted key, unchecked: what has to be set may be missing."""
    cfg = compose_or_explain(composer, tokens)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return flatten(to_plain(OmegaConf.to_container(own)))


def _choice(composer: Composer, group: str, schema: str, section: Any) -> str:
    """`group=option`: the option named like the section, else the first with its schema."""
    options = sorted(composer.options(group), key=lambda option: option != getattr(section, "name", ""))
    return f"{group}={next(option for option in options if composer.schema_of(group, option) == schema)}"
