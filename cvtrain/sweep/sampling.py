"""Sampling of a trial's values: Optuna's samplers, which here depend on the seed and the trial's number alone."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from cvtrain.config.schema.sweep import Sampler
from cvtrain.sweep.parameters import Parameter
from cvtrain.sweep.spec import SweepSpec

SURPLUS = "surplus"
# Up to this number of trials, sampler=auto is a Gaussian process: 0.3 to 0.9 s of a core for each, later ones more.
GP_TRIALS = 200


def sample_values(trial: Trial, spec: SweepSpec) -> dict[str, Any]:
    """Return the trial's value of every parameter; a resumed trial keeps those that it has."""
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


def distribution_of(parameter: Parameter, method: str) -> BaseDistribution | None:
    """Return Optuna's distribution of a parameter; None for a constant."""
    if parameter.distribution == "constant":
        return None
    if method == "grid" or parameter.range is None:
        return CategoricalDistribution(labels(_choices(parameter, method)))
    found = parameter.range
    if found.integer:
        return IntDistribution(int(found.low), int(found.high), log=found.log)
    return FloatDistribution(found.low, found.high, log=found.log)


def labels(values: Sequence[Any]) -> list[Any]:
    """Return values for the database: as they are, or as JSON if some are lists, or equal like 1 and true."""
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
    """Return the sampler of a search's method."""
    if spec.method == "grid":
        return GridInOrder(spec)
    if spec.method == "random":
        return SeededSampler(lambda number, seed: RandomSampler(seed=seed), seed)

    def of_trial(number: int, seed: int) -> BaseSampler:
        wants_gp = sampler is Sampler.gp or (sampler is Sampler.auto and suits_gp(spec, number))
        return FreshGP(seed) if wants_gp else TPESampler(seed=seed, multivariate=True)

    return SeededSampler(of_trial, seed)


def suits_gp(spec: SweepSpec, number: int) -> bool:
    """Return whether sampler=auto uses a Gaussian process for a trial, which found more than TPE where this is true.

    It ignores pruned trials, has no order to learn from in choices, and takes ever longer. The rule is per trial, so
    that a search that is extended samples what one that was long from the start does.
    """
    varying = [parameter for parameter in spec.parameters if parameter.varies()]
    with_order = sum(parameter.range is not None and not parameter.choices for parameter in varying)
    return spec.early_termination is None and 2 * with_order >= len(varying) and number < GP_TRIALS


class FreshGP(GPSampler):
    """Optuna's Gaussian process, on one thread, without repeated samples.

    At an optimum on the edge of its space it returns the same values again and again; then TPE samples. More threads
    do not pay for small matrices while trials need the cores, and would change the samples.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._fallback = TPESampler(seed=seed, multivariate=True)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = super().sample_relative(study, trial, search_space)
        finally:
            torch.set_num_threads(threads)
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        if found and any(found.items() <= other.params.items() for other in others):
            return self._fallback.sample_relative(study, trial, search_space)
        return found


def seed_of_trial(seed: int, number: int) -> int:
    """Return a seed that differs from trial to trial and from search to search, and is the same on every machine."""
    return random.Random(f"{seed}/{number}").getrandbits(32)


def rank_of(trial: FrozenTrial, study: optuna.Study) -> int:
    """Return how many trials came before this one, without surplus ones."""
    others = study.get_trials(deepcopy=False)
    return sum(other.number < trial.number and SURPLUS not in other.user_attrs for other in others)


class SeededSampler(BaseSampler):
    """A sampler of Optuna's, made anew for each trial from its number and a seed of its own.

    What a trial gets then depends on the seed, its number and the trials before it alone, also in a search that is
    resumed or shared by several machines.
    """

    def __init__(self, make: Callable[[int, int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(0, seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = self._make(trial.number, seed_of_trial(self._seed, trial.number))
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
    """The combinations of a grid in order, the last parameter fastest, each exactly once.

    A trial's combination depends on its place among the trials alone, so machines need not coordinate.
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
