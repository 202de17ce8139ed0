"""Whether runs accept what a search will ask of them: every value of a sweep file, before the first trial starts."""

from collections.abc import Iterable
from dataclasses import replace

from omegaconf import DictConfig

from cvtrain.config.composer import COMPOSITION_ERRORS, Composer, jobs_to_check
from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.load import compose_or_explain, typed_config
from cvtrain.config.overrides import normalize_override, override
from cvtrain.config.provenance import COMMAND_LINE, readable
from cvtrain.config.schema.root import Config
from cvtrain.sweep.parameters import Parameter
from cvtrain.sweep.spec import SweepSpec

# What a search itself decides for its trials.
OWN_KEYS = {
    "resume": "a search goes on by itself when its command is given again",
    "output_root": "give it on the command line: it is one for all trials",
    "log_level": "give it on the command line",
}


def check_spec(spec: SweepSpec, composer: Composer, fixed: list[str]) -> Config:
    """Compose and check every value of every parameter, together with the settings that all trials have.

    Of a large search each value is tried once, beside the first of the others; of an interval its two ends.

    Args:
        composer: composer of the verb train.
        fixed: overrides of all trials, as `normalize_override` leaves them.

    Returns:
        The config that all trials start from, without any parameter of the search.

    Raises:
        ConfigError: every problem, each once.
    """
    base = typed_config(compose_or_explain(composer, fixed), composer, fixed)
    where = f"in {readable(spec.path)}"
    problems = _key_problems(spec, fixed)
    if problems:
        raise ConfigError(problems=[problem.with_origin(where) for problem in problems])
    names = {parameter.key for parameter in spec.parameters}
    found: dict[str, Problem] = {}
    bases: dict[tuple[str, ...], DictConfig] = {}
    for job in probing_jobs(spec.parameters):
        try:
            typed_config(_compose_job(composer, fixed, job, bases), composer, [*fixed, *job])
        except ConfigError as error:
            for problem in error.problems:
                told = problem
                if problem.origin in ("", COMMAND_LINE) and problem.key.lstrip("+~").partition("[")[0] in names:
                    told = replace(problem, origin=where)
                found[str(told)] = told
    if found:
        raise ConfigError(problems=list(found.values()))
    return base


def _compose_job(
    composer: Composer, fixed: list[str], job: list[str], bases: dict[tuple[str, ...], DictConfig]
) -> DictConfig:
    """The config of one trial; `bases` has what was composed for the options that it chooses."""
    try:
        overrides = [composer.parse(token) for token in job]
        choices = tuple(token for token, each in zip(job, overrides, strict=True) if composer.is_choice(each))
        if choices not in bases:
            bases[choices] = composer.compose([*fixed, *choices])
        return composer.with_values(bases[choices], [each for each in overrides if not composer.is_choice(each)])
    except COMPOSITION_ERRORS:
        return compose_or_explain(composer, [*fixed, *job])


def probing_jobs(parameters: Iterable[Parameter]) -> list[list[str]]:
    """Overrides of the trials to check: all combinations if they are few, else each value beside the others' first."""
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
