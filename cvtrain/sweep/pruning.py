"""Early termination of trials: W&B's hyperband and the median rule, counted in evaluations."""

import math

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from cvtrain.sweep.spec import EarlyTermination


def build_pruner(settings: EarlyTermination | None) -> BasePruner:
    """Return the pruner of a sweep file's `early_terminate`."""
    if settings is None:
        return NopPruner()
    if settings.kind == "median":
        return MedianPruner(n_startup_trials=settings.min_trials, n_warmup_steps=settings.min_iter)
    return BandPruner(settings.bands, eta=settings.eta, strict=settings.strict)


class BandPruner(BasePruner):
    """Prunes a trial at a band unless it is among the best 1/eta of the trials that have reached the band.

    This is the rule of W&B's hyperband, applied once, when the trial reaches the band. The threshold is the value of
    rank floor(n/eta) of n, so the first trial always continues. A trial whose value is NaN is pruned.

    Args:
        bands: numbers of evaluations after which trials are compared.
        eta: one in eta continues.
        strict: compare the values at the band; else the best values up to it.
    """

    def __init__(self, bands: tuple[int, ...], *, eta: float, strict: bool) -> None:
        self.bands = bands
        self.eta = eta
        self.strict = strict

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        band = len(trial.intermediate_values)
        if band not in self.bands:
            return False
        maximize = study.direction is StudyDirection.MAXIMIZE
        own = self.value_at(trial, band, maximize=maximize)
        if math.isnan(own):
            return True
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        values = [
            self.value_at(other, band, maximize=maximize) for other in others if len(other.intermediate_values) >= band
        ]
        ranked = sorted([own, *(value for value in values if not math.isnan(value))], reverse=maximize)
        threshold = ranked[int(len(ranked) / self.eta)]
        return own < threshold if maximize else own > threshold

    def value_at(self, trial: FrozenTrial, band: int, *, maximize: bool) -> float:
        """Return the value that a trial is compared by after `band` evaluations."""
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)[:band]]
        if self.strict:
            return values[-1]
        numbers = [value for value in values if not math.isnan(value)]
        return (max if maximize else min)(numbers, default=math.nan)
