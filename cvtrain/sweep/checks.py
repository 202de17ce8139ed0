"""Checks the values of a sweep file against the settings of runs, before the first trial starts."""

from collections.abc import Iterable
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from cvtrain.config.composer import COMPOSITION_ERRORS, Composer, jobs_to_check
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.load import compose_or_explain, typed_config
from cvtrain.config.overrides import normalize_override, override
from cvtrain.config.provenance import COMMAND_LINE, readable
from cvtrain.config.schema.root import Config
from cvtrain.sweep.parameters import Parameter
from cvtrain.sweep.spec import SweepSpec

# Settings that a search decides for its trials.
OWN_KEYS = {
    "resume": "the same command again resumes a search",
    "output_root": "give it on the command line: it is one for all trials",
    "log_level": "give it on the command line",
}


def check_spec(spec: SweepSpec, composer: Composer, fixed: list[str]) -> Config:
    """Compose and check every value of every parameter, together with the settings that all trials share.

    In a large search each value is checked once, beside the first of the others; an interval at its two ends.

    Args:
        composer: composer of the verb train.
        fixed: overrides of all trials, as `normalize_override` leaves them.

    Returns:
        The config of `base_config`.

    Raises:
        ConfigError: every problem, each once.
    """
    where = f"in {readable(spec.path)}"
    names = {parameter.key for parameter in spec.parameters}
    try:
        base = base_config(spec, composer, fixed)
    except ConfigError as error:
        raise ConfigError(problems=[_located(problem, names, where) for problem in error.problems]) from error
    problems = _key_problems(spec, fixed)
    if problems:
        raise ConfigError(problems=[problem.with_origin(where) for problem in problems])
    found: dict[str, Problem] = {}
    bases: dict[tuple[str, ...], DictConfig] = {}
    for job in probing_jobs(spec.parameters):
        try:
            typed_config(_compose_job(composer, fixed, job, bases), composer, [*fixed, *job])
        except ConfigError as error:
            located = [_located(problem, names, where) for problem in error.problems]
            found.update({str(problem): problem for problem in located})
    if found:
        raise ConfigError(problems=list(found.values()))
    return base


def _located(problem: Problem, names: set[str], where: str) -> Problem:
    """Name the sweep file as the origin of a parameter's value, which a trial gets on its command line."""
    is_searched = problem.key.lstrip("+~").partition("[")[0] in names
    return replace(problem, origin=where) if is_searched and problem.origin in ("", COMMAND_LINE) else problem


def base_config(spec: SweepSpec, composer: Composer, fixed: list[str]) -> Config:
    """Return the config that all trials start from: without parameters of the search, but for required settings.

    A required setting that is searched (such as `data.root`) has its first value.

    Raises:
        ConfigError: everything that is wrong with `fixed`.
    """
    try:
        config = compose_or_explain(composer, fixed)
    except ConfigError as error:
        searched = {item.key for item in spec.parameters}  # of which a required one is missing here
        others = [problem for problem in error.problems if problem.key not in searched]
        raise ConfigError(problems=others or error.problems) from error
    required = [item for item in spec.parameters if _is_missing(config, item.key)]
    if required:
        fixed = [*fixed, *probing_jobs(required)[0]]
        config = compose_or_explain(composer, fixed)
    base: Config = typed_config(config, composer, fixed)
    return base


def _is_missing(config: DictConfig, key: str) -> bool:
    section, _, name = key.rpartition(".")
    parent = OmegaConf.select(config, section) if section else config
    return isinstance(parent, DictConfig) and OmegaConf.is_missing(parent, name)


def _compose_job(
    composer: Composer, fixed: list[str], job: list[str], bases: dict[tuple[str, ...], DictConfig]
) -> DictConfig:
    """Compose the config of one trial; `bases` caches configs by the options that a trial chooses."""
    try:
        overrides = [composer.parse(token) for token in job]
        choices = tuple(token for token, each in zip(job, overrides, strict=True) if composer.is_choice(each))
        if choices not in bases:
            bases[choices] = composer.compose([*fixed, *choices])
        return composer.with_values(bases[choices], [each for each in overrides if not composer.is_choice(each)])
    except COMPOSITION_ERRORS:
        return compose_or_explain(composer, [*fixed, *job])


def probing_jobs(parameters: Iterable[Parameter]) -> list[list[str]]:
    """Return the overrides of each trial to check: all combinations if they are few, else each value once."""
    lists = [
        [normalize_override(override(parameter.key, value), "train") for value in parameter.probes()]
        for parameter in parameters
    ]
    return jobs_to_check(lists)


def _key_problems(spec: SweepSpec, fixed: list[str]) -> list[Problem]:
    problems = []
    given = {token.lstrip("+~").partition("=")[0]: token for token in fixed}
    for parameter in spec.parameters:
        key = parameter.key
        if key in OWN_KEYS or key.startswith("hydra"):
            remedy = OWN_KEYS.get(key, "it belongs to Hydra, not to a run")
            problems.append(Problem(f"parameters.{key}", rule="cannot be a parameter of a search", remedy=remedy))
        elif key in given:
            rule = f"is searched, and set on the command line too: {given[key]}"
            problems.append(Problem(f"parameters.{key}", rule=rule, remedy="take one of the two out"))
        for value in parameter.probes():
            try:
                override(key, value)
            except ValueError as error:
                problems.append(Problem(f"parameters.{key}", value, str(error)))
    return problems
