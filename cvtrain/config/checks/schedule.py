"""Rules of group `scheduler`, against the length of the run."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from cvtrain.config.errors import Problem
from cvtrain.config.schema.optim import MultiStepConfig, OneCycleConfig, StepConfig
from cvtrain.config.schema.root import Config


def _is_cut_short(config: Config) -> bool:
    """True for runs that end early on purpose, such as debug=smoke: they may keep the schedule of the full run."""
    trainer = config.trainer
    return trainer.max_steps is not None or trainer.limit_train_batches is not None or trainer.overfit_one_batch


def warmup_is_set_once(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    scheduler = config.scheduler
    if scheduler.warmup_steps is not None and scheduler.warmup_epochs > 0 and is_set("scheduler.warmup_epochs"):
        yield Problem(
            "scheduler.warmup_epochs",
            scheduler.warmup_epochs,
            f"has no effect: scheduler.warmup_steps={scheduler.warmup_steps} takes its place",
            "leave one of the two out",
        )


def warmup_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    scheduler = config.scheduler
    is_on = scheduler.warmup_epochs > 0 or bool(scheduler.warmup_steps)
    if isinstance(scheduler, OneCycleConfig):
        for key in ("warmup_epochs", "warmup_steps", "warmup_start_factor"):
            if getattr(scheduler, key) and is_set(f"scheduler.{key}"):
                yield Problem(
                    f"scheduler.{key}",
                    getattr(scheduler, key),
                    "has no effect with scheduler=onecycle, which brings its own warm-up",
                    "set scheduler.pct_start and scheduler.div_factor",
                )
    elif not is_on and is_set("scheduler.warmup_start_factor"):
        yield Problem(
            "scheduler.warmup_start_factor",
            scheduler.warmup_start_factor,
            "has no effect without a warm-up",
            "set scheduler.warmup_epochs or scheduler.warmup_steps",
        )


def warmup_ends_before_run(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    scheduler, trainer = config.scheduler, config.trainer
    if isinstance(scheduler, OneCycleConfig) or trainer.epochs == 0:
        return
    steps = scheduler.warmup_steps
    if steps is not None:
        if trainer.max_steps is not None and steps >= trainer.max_steps and is_set("scheduler.warmup_steps"):
            yield Problem(
                "scheduler.warmup_steps",
                steps,
                f"is as long as the run: trainer.max_steps={trainer.max_steps}",
                "set a shorter warm-up",
            )
    elif scheduler.warmup_epochs >= trainer.epochs and not _is_cut_short(config):
        yield Problem(
            "scheduler.warmup_epochs",
            scheduler.warmup_epochs,
            f"is as long as the run: trainer.epochs={trainer.epochs}",
            "set a shorter warm-up or a longer run",
        )


def drops_are_reached(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    scheduler, epochs = config.scheduler, config.trainer.epochs
    if epochs == 0:
        return
    if isinstance(scheduler, MultiStepConfig):
        milestones = scheduler.milestones_epochs
        if not milestones or any(later <= earlier for earlier, later in pairwise(milestones)):
            yield Problem("scheduler.milestones_epochs", milestones, "must rise, and hold one epoch at least")
        elif milestones[0] >= epochs and not _is_cut_short(config):
            yield Problem(
                "scheduler.milestones_epochs",
                milestones,
                f"has no effect: the run ends after trainer.epochs={epochs}, before the first drop",
                "set earlier milestones or a longer run, or scheduler=constant",
            )
    if isinstance(scheduler, StepConfig) and scheduler.step_epochs >= epochs and not _is_cut_short(config):
        yield Problem(
            "scheduler.step_epochs",
            scheduler.step_epochs,
            f"has no effect: the run ends after trainer.epochs={epochs}, before the first drop",
            "set fewer epochs between drops or a longer run, or scheduler=constant",
        )


SCHEDULE_CHECKS = (warmup_is_set_once, warmup_is_used, warmup_ends_before_run, drops_are_reached)
