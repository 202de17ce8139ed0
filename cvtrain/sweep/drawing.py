"""How the values of a trial are drawn: Optuna's samplers, made to depend on the seed and the trial's number alone."""

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from cvtrain.config.sweep import Sampler
from cvtrain.sweep.parameters import Parameter
from cvtrain.sweep.spec import SweepSpec

SURPLUS = "surplus"


def draw(trial: Trial, spec: SweepSpec) -> dict[str, Any]:
    """The trial's value of every parameter, those that it was given before it was cut included."""
    values = {}
    for parameter in spec.parameters:
        distribution = distribution_of(parameter, spec.method)
        if distribution is None:
            values[parameter.key] = parameter.choices[0]
        elif isinstance(distribution, CategoricalDistribution):
            choices = _choices(parameter, spec.method)
            label = trial.suggest_categorical(parameter.key, distribution.choices)
            values[parameter.key] = choices[list(distribution.choices).index(label)]
        else:
            values[parameter.key] = parameter.value_of(_suggest_number(trial, parameter.key, distribution))
    return values


def value_of(parameter: Parameter, method: str, drawn: Any) -> Any:
    """The value that a number or label in the database stands for."""
    distribution = distribution_of(parameter, method)
    if isinstance(distribution, CategoricalDistribution):
        return _choices(parameter, method)[list(distribution.choices).index(drawn)]
    return parameter.value_of(drawn)


def distribution_of(parameter: Parameter, method: str) -> BaseDistribution | None:
    """What Optuna draws for a parameter; None for a constant."""
    if parameter.distribution == "constant":
        return None
    if method == "grid" or parameter.range is None:
        return CategoricalDistribution(labels(_choices(parameter, method)))
    found = parameter.range
    if found.integer:
        return IntDistribution(int(found.low), int(found.high), log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def labels(values: Sequence[Any]) -> list[Any]:
    """Values as the database keeps them: as they are, or as JSON if some are lists, or equal like 1 and true."""
    is_plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
    if is_plain and len(set(values)) == len(values):
        return list(values)
    return [json.dumps(value) for value in values]


def _choices(parameter: Parameter, method: str) -> list[Any]:
    return list(parameter.choices) or parameter.grid() or []


def _suggest_number(trial: Trial, key: str, distribution: BaseDistribution) -> float:
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log)


def build_sampler(spec: SweepSpec, sampler: Sampler, seed: int) -> BaseSampler:
    """The sampler of a search's method."""
    if spec.method == "grid":
        return GridInOrder(spec)
    if spec.method == "random":
        return SeededSampler(lambda number: RandomSampler(seed=number), seed)
    if sampler is Sampler.gp:
        return SeededSampler(lambda number: GPSampler(seed=number), seed)
    return SeededSampler(lambda number: TPESampler(seed=number, multivariate=True), seed)


def seed_of_trial(seed: int, number: int) -> int:
    """A seed that differs from trial to trial and from search to search; the same on every machine and start."""
    return random.Random(f"{seed}/{number}").getrandbits(32)


def rank_of(trial: FrozenTrial, study: optuna.Study) -> int:
    """How many trials came before this one, without those that were one too many."""
    others = study.get_trials(deepcopy=False)
    return sum(other.number < trial.number and SURPLUS not in other.user_attrs for other in others)


class SeededSampler(BaseSampler):
    """A sampler of Optuna's, made anew for each trial with a seed of the trial's own.

    So a search that is cut and goes on, and one that several machines share, draws no value twice by chance of a
    restarted generator, and what a trial gets depends on the seed, its number and the trials before it alone.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(seed_of_trial(self._seed, trial.number))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)


class GridInOrder(BaseSampler):
    """The combinations of a grid in their order, the last parameter moving first, each exactly once.

    Which one a trial gets depends on its place among the trials alone, so that machines need not agree on it.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._lists = {
            parameter.key: labels(_choices(parameter, spec.method))
            for parameter in spec.parameters
            if parameter.distribution != "constant"
        }

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        rank = rank_of(trial, study)
        sizes = [len(values) for values in self._lists.values()]
        position = list(self._lists).index(param_name)
        after = math.prod(sizes[position + 1 :])
        return self._lists[param_name][rank // after % sizes[position]]


def all_combinations(spec: SweepSpec) -> list[dict[str, Any]]:
    """Every combination of a grid in the order of `GridInOrder`."""
    keys = [parameter.key for parameter in spec.parameters]
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(parameter.grid() or [] for parameter in spec.parameters))
    ]
