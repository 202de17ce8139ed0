"""Learning-rate schedules: a factor on the peak rate per optimizer step, after a linear warm-up.

`step` counts the optimizer updates done so far: update number `step` (0-based) runs at `factor(step)`, and the last
update of a run is `total_steps - 1`.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from cvtrain.config.schema.optim import (
    ConstantConfig,
    CosineConfig,
    ExponentialConfig,
    LinearConfig,
    MultiStepConfig,
    OneCycleConfig,
    PlateauConfig,
    PolynomialConfig,
    SchedulerConfig,
    StepConfig,
)
from cvtrain.optim.schedule_factors import constant, cosine, exponential, multistep, onecycle, polynomial, step_decay

logger = logging.getLogger(__name__)


class Schedule:
    """A linear warm-up, then `main`.

    During the warm-up, factor(step) = (f + (1 - f) step / warmup_steps) * main(0) with f = `warmup_start_factor`, so it
    is f at the first step and would be 1 at step `warmup_steps`, where main(0) takes over: torch's
    SequentialLR([LinearLR(start_factor=f, total_iters=warmup_steps), main], milestones=[warmup_steps]).

    Args:
        main: factor as a function of the steps since the warm-up's end.
        warmup_steps: updates in the warm-up; 0: none.
        warmup_start_factor: factor at step 0, in [0, 1].
    """

    def __init__(
        self, main: Callable[[int], float], *, warmup_steps: int = 0, warmup_start_factor: float = 0.01
    ) -> None:
        self.main = main
        self.warmup_steps = warmup_steps
        self.warmup_start_factor = warmup_start_factor

    def factor(self, step: int) -> float:
        """What update number `step` (0-based) multiplies the peak rate by."""
        if step >= self.warmup_steps:
            return self.main(step - self.warmup_steps)
        ramp = self.warmup_start_factor + (1 - self.warmup_start_factor) * step / self.warmup_steps
        return ramp * self.main(0)

    def observe(self, value: float) -> None:
        """Take an evaluation's monitored value; all but the plateau schedule have no use for it."""

    def state_dict(self) -> dict[str, Any]:
        """What `factor` depends on besides the step: nothing here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""


class PlateauSchedule(Schedule):
    """Drops the rate when an evaluation's value has stopped getting better, after a linear warm-up.

    As torch's ReduceLROnPlateau with a relative threshold and no cooldown: a value is better if it beats the best so
    far by more than `threshold * |best|`; after more than `patience` evaluations in a row that are not (NaN never is),
    the factor is multiplied by `drop` and the count starts again. torch's threshold helps rather than hinders where the
    best is negative; here it is taken of the magnitude.

    Args:
        mode: "max" or "min", which direction is better.
        drop: factor at each drop, in (0, 1).
        patience: evaluations in a row without a better value that are put up with.
        threshold: smallest relative change that counts as better.
        min_factor: the factor goes no lower, in [0, 1].
        warmup_steps, warmup_start_factor: as in `Schedule`.
    """

    def __init__(
        self,
        *,
        mode: str,
        drop: float = 0.1,
        patience: int = 5,
        threshold: float = 1e-4,
        min_factor: float = 0.0,
        warmup_steps: int = 0,
        warmup_start_factor: float = 0.01,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; it has to be 'max' or 'min'")
        super().__init__(self._current, warmup_steps=warmup_steps, warmup_start_factor=warmup_start_factor)
        self.sign = 1.0 if mode == "max" else -1.0
        self.drop = drop
        self.patience = patience
        self.threshold = threshold
        self.min_factor = min_factor
        self._factor = 1.0
        self._best: float | None = None
        self._num_bad = 0

    def observe(self, value: float) -> None:
        """Take the monitored value of an evaluation, and drop the factor if it is time."""
        best = self._best
        if value == value and (best is None or self.sign * (value - best) > self.threshold * abs(best)):
            self._best, self._num_bad = value, 0
            return
        self._num_bad += 1
        if self._num_bad > self.patience:
            self._factor = max(self._factor * self.drop, self.min_factor)
            self._num_bad = 0

    def _current(self, step: int) -> float:
        return self._factor

    def state_dict(self) -> dict[str, Any]:
        """Factor, best value so far (None before the first) and evaluations since."""
        return {"factor": self._factor, "best": self._best, "num_bad": self._num_bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict()`."""
        self._factor, self._best, self._num_bad = state["factor"], state["best"], state["num_bad"]


def apply_schedule(optimizer: Optimizer, schedule: Schedule, step: int, *, scale: float = 1.0) -> None:
    """Set each group's learning rate for update number `step`: `initial_lr` times the schedule's factor and `scale`."""
    factor = schedule.factor(step) * scale
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def build_schedule(
    config: SchedulerConfig, *, steps_per_epoch: int, total_steps: int, monitor_mode: str = "max"
) -> Schedule:
    """The schedule of `config` for a run of `total_steps` updates.

    Epochs become steps by rounding to whole steps, at least 1. Drops of `step` and `multistep` are counted from the
    start of the run, warm-up included, as papers give them (Goyal et al. 2017: warm-up of 5 epochs, drops at 30, 60
    and 80); the others begin when the warm-up ends and take the rest of the run.

    Args:
        config: one of `SCHEDULER_CONFIGS`.
        steps_per_epoch: updates per epoch, at least 1.
        total_steps: updates in the whole run; 0: there are none; more when a run is extended.
        monitor_mode: "max" or "min", which direction of the monitored value is better; for plateau.
    """
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if isinstance(config, OneCycleConfig):  # rises by itself; a warm-up of a shared experiment file has no effect
        warmup_steps = 0
    if warmup_steps >= total_steps > 0:
        logger.warning(
            "the warm-up of %d steps is as long as the run of %d: the learning rate never gets to optimizer.lr",
            warmup_steps,
            total_steps,
        )
    warmup: dict[str, Any] = {"warmup_steps": warmup_steps, "warmup_start_factor": config.warmup_start_factor}
    if isinstance(config, PlateauConfig):
        return PlateauSchedule(
            mode=monitor_mode,
            drop=config.factor,
            patience=config.patience,
            threshold=config.threshold,
            min_factor=config.min_factor,
            **warmup,
        )
    main = _main_factor(config, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps, total_steps=total_steps)
    return Schedule(main, **warmup)


def _main_factor(
    config: SchedulerConfig, *, steps_per_epoch: int, warmup_steps: int, total_steps: int
) -> Callable[[int], float]:
    """The factor as a function of the steps since the warm-up's end."""
    num_steps = max(1, total_steps - warmup_steps)
    match config:
        case ConstantConfig():
            return constant
        case StepConfig():
            period = max(1, round(config.step_epochs * steps_per_epoch))
            return partial(step_decay, period_steps=period, gamma=config.gamma, first_step=warmup_steps)
        case MultiStepConfig():
            milestones = tuple(max(1, round(epoch * steps_per_epoch)) for epoch in config.milestones_epochs)
            return partial(multistep, milestones=milestones, gamma=config.gamma, first_step=warmup_steps)
        case ExponentialConfig():
            return partial(exponential, steps_per_epoch=steps_per_epoch, gamma=config.gamma)
        case LinearConfig():
            return partial(polynomial, num_steps=num_steps, power=1.0, end_factor=config.end_factor)
        case PolynomialConfig():
            return partial(polynomial, num_steps=num_steps, power=config.power, end_factor=config.end_factor)
        case CosineConfig():
            return partial(cosine, num_steps=num_steps, end_factor=config.end_factor)
        case OneCycleConfig():
            return partial(
                onecycle,
                num_steps=total_steps,
                pct_start=config.pct_start,
                div_factor=config.div_factor,
                final_div_factor=config.final_div_factor,
            )
    raise ValueError(f"{type(config).__name__} is no schedule of SCHEDULER_CONFIGS")
