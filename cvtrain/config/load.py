"""From a command to a typed, checked config. No other module passes on Hydra's raw config."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, flag_override

from cvtrain.config.checks import find_conflicts
from cvtrain.config.composer import COMPOSITION_ERRORS, Composer
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.explain import explain, sweep_problems
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.launchers import launcher_problems
from cvtrain.config.provenance import Origins
from cvtrain.config.recipes import apply_recipe
from cvtrain.config.schema.data import Normalize
from cvtrain.config.schema.model import PretrainedConfig, is_file_name
from cvtrain.config.schema.root import GROUP_SCHEMAS, Config
from cvtrain.config.unicode_paths import find_stored_forms
from cvtrain.config.validation import find_rule_problems

# Groups of which one option is chosen; a logger has no name.
NAMED_GROUPS = tuple(group for group in GROUP_SCHEMAS if group != "logger")


def check_command(composer: Composer, overrides: list[str], multirun: bool) -> DictConfig | None:
    """Compose and check every job of a command, before anything is made on disk.

    Args:
        composer: composer of the command's verb.
        overrides: the command's tokens, as `normalize_override` leaves them.
        multirun: True with --multirun; `hydra.mode=MULTIRUN` in the config counts as well.

    Returns:
        The config of a command that is one run, with Hydra's own node; None for a sweep.

    Raises:
        ConfigError: everything that is wrong with any job, each problem once.
    """
    master = compose_or_explain(composer, overrides)
    is_sweep = multirun or str(master.hydra.mode or "").endswith("MULTIRUN")
    launching = list(launcher_problems(master.hydra, is_sweep=is_sweep))
    if launching:
        raise ConfigError(problems=launching)
    if not is_sweep:
        problems = sweep_problems(composer, overrides)
        if problems:
            raise ConfigError(problems=problems)
        typed_config(master, composer, overrides)
        return master
    found: dict[str, Problem] = {}
    for job in composer.jobs(overrides):
        try:
            typed_config(compose_or_explain(composer, job), composer, job)
        except ConfigError as error:
            found.update({str(problem): problem for problem in error.problems})
    if found:
        raise ConfigError(problems=list(found.values()))
    return None


def compose_or_explain(composer: Composer, overrides: list[str]) -> DictConfig:
    """The composed config of one job; a ConfigError that names every wrong token if there is none."""
    with explaining_errors(composer, overrides):
        return composer.compose(overrides)


@contextmanager
def explaining_errors(composer: Composer, overrides: list[str]) -> Iterator[None]:
    """Turn the errors of a composition of `overrides` into a ConfigError that names every wrong token."""
    try:
        yield
    except ConfigError:
        raise
    except COMPOSITION_ERRORS as error:
        problems = explain(composer, overrides, error)
        raise with_origins(ConfigError(problems=problems), composer, overrides) from error


def typed_config(
    cfg: DictConfig, composer: Composer, overrides: list[str], choices: Mapping[str, Any] | None = None
) -> Any:
    """The typed config of one job: an instance of the verb's dataclass that keeps every rule.

    Args:
        cfg: composed config; a `hydra` node in it is left out.
        composer: composer of the job's verb, which finds origins when something is wrong.
        overrides: the overrides of this job.
        choices: the option of each group, if `cfg` has no `hydra` node.

    Raises:
        ConfigError: every problem found, each with the place where its value was set.
    """
    if "hydra" in cfg:
        choices = cfg.hydra.runtime.choices
    origins = Origins(composer, overrides, choices)
    problems = find_rule_problems(cfg, composer) + list(option_name_problems(cfg, origins))
    problems += origins.misread_scalars()
    if not problems:
        config = _to_dataclass(cfg)
        find_stored_forms(getattr(config, "data", None))
        _prefer_own_statistics(config, origins)
        if isinstance(config, Config):
            apply_recipe(config, lambda key: origins.is_set_outside(key.partition(".")[0], key))
        problems = find_conflicts(config, origins.is_explicit)
    if problems:
        raise ConfigError(problems=[_with_origin(problem, origins) for problem in problems])
    return config


def _prefer_own_statistics(config: Any, origins: Origins) -> None:
    """Let `data.mean` and `data.std` win over those that weights of a local file have by their architecture."""
    model = getattr(config, "model", None)
    if isinstance(model, PretrainedConfig) and model.pretrained and model.weights and is_file_name(model.weights):
        own = origins.is_explicit("data.mean") or origins.is_explicit("data.std")
        if own and config.data.normalize is Normalize.auto:
            config.data.normalize = Normalize.data


def check_files(composer: Composer, overrides: list[str]) -> None:
    """Refuse files of the user's whose text YAML reads as numbers or switches.

    Raises:
        ConfigError: every such scalar.
    """
    problems = list(Origins(composer, overrides).misread_scalars())
    if problems:
        raise ConfigError(problems=problems)


def option_name_problems(cfg: DictConfig, origins: Origins) -> Iterator[Problem]:
    """Yield a problem for each `optimizer.name=sgd`, which would change the label and train with another option.

    An option's own file may give its name.
    """
    for group in NAMED_GROUPS if origins.composer.verb == "train" else ():
        section = cfg.get(group)
        raw: Any = OmegaConf.to_container(section, resolve=False) if isinstance(section, DictConfig) else {}
        name = raw.get("name")
        chosen = (origins.choices or {}).get(group)
        key = f"{group}.name"
        # Files are read only where the name is not the option's.
        if name is None or name in (chosen, "???", "${.arch}") or not origins.is_set_outside(group, key):
            continue
        names = [name] if name in (options := origins.composer.options(group)) else closest(str(name), options)
        yield Problem(
            key,
            name,
            f"is the label of {group}={chosen or '...'} and chooses nothing",
            did_you_mean(f"{group}={option}" for option in names) or "leave it out; name=... names the run",
        )


def with_origins(error: ConfigError, composer: Composer, overrides: list[str]) -> ConfigError:
    """An error of a later phase, such as building the model, with the places where its settings were set."""
    origins = Origins(composer, overrides)
    return ConfigError(problems=[_with_origin(problem, origins) for problem in error.problems])


def _with_origin(problem: Problem, origins: Origins) -> Problem:
    key = problem.key.partition("[")[0]  # an item of a list, such as augment.transforms[2], comes with its list
    return replace(problem, origin=problem.origin or (origins.describe(key) if key else ""))


def _to_dataclass(cfg: DictConfig) -> Any:
    if "hydra" not in cfg:
        return OmegaConf.to_object(cfg)
    previous = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)  # for ${hydra:...} in a user's value
    try:
        settings = deepcopy(cfg)
        with flag_override(settings, ["readonly", "struct"], False):
            del settings["hydra"]
        return OmegaConf.to_object(settings)
    finally:
        HydraConfig.instance().cfg = previous
