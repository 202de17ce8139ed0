"""`TrainState`: where a run is; and the checkpoint's entries out of it and the parts of the run, and back."""

import logging
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.trainer import TrainerConfig
from cvtrain.data.images.errors import BadImage
from cvtrain.runtime.rng import get_rng_state, set_rng_state
from cvtrain.training.monitor import Monitor

if TYPE_CHECKING:
    from cvtrain.training.parts import TrainerParts

log = logging.getLogger(__name__)


class StopReason(str, Enum):
    """Why `fit` returned."""

    epochs = "all epochs done"
    max_steps = "trainer.max_steps reached"
    max_minutes = "trainer.max_minutes reached"
    early_stop = "early stopping: no better monitor"
    pruned = "pruned: its search has no more use for it"
    interrupted = "interrupted"


@dataclass
class TrainState:
    """Where a run is: the next step trains batch `batch` of epoch `epoch`, unless the epoch's end is due first.

    Attributes:
        step: optimizer updates so far; the one clock.
        epoch, batch: 0-based position in the data.
        epoch_end_due: the epoch's evaluation and save are still to come.
        evaluated_step: the step of the last evaluation; -1: there was none.
        grad_accum_steps: micro-batches of a batch, more than the config has after the device ran out of memory.
        num_skipped_steps: updates left out by `on_nonfinite=skip`.
        num_rollbacks: rollbacks since the last evaluation.
        lr_scale: factor on the config's learning rates, from rollbacks.
        elapsed_seconds: of `fit`, before the last restart.
        metrics: of the last evaluation, `val/...`.
        temperature: of the last evaluation, see `calibration`.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    epoch_end_due: bool = False
    evaluated_step: int = -1
    grad_accum_steps: int = 1
    num_skipped_steps: int = 0
    num_rollbacks: int = 0
    lr_scale: float = 1.0
    elapsed_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    temperature: float = 1.0

    @property
    def finished_epoch(self) -> int:
        """The epoch (0-based) of the last step: at its end the position is already the next one's. -1: the start."""
        return self.epoch if self.batch else self.epoch - 1


POSITION = ("step", "epoch", "batch", "epoch_end_due", "evaluated_step")
RECOVERY = ("grad_accum_steps", "num_skipped_steps", "num_rollbacks", "lr_scale")


# Parts with `state_dict` and `load_state_dict`.
STATEFUL = ("model", "ema", "optimizer", "schedule", "scaler", "monitor", "stopwatch")


def collect_entries(parts: "TrainerParts", state: TrainState) -> dict[str, Any]:
    """Return the entries of a checkpoint: tensors (where they are) and plain values.

    All ranks call it, and rank 0 gets what each has for itself too, under `ranks`.
    """
    own = {"window": parts.window.state_dict(), "generators": get_rng_state(parts.device)}
    return {
        **{name: getattr(parts, name).state_dict() for name in STATEFUL},
        **own,
        "position": {name: getattr(state, name) for name in POSITION},
        "recovery": {name: getattr(state, name) for name in RECOVERY},
        "elapsed_seconds": state.elapsed_seconds,
        "metrics": state.metrics,
        "temperature": state.temperature,
        "loggers": parts.logger.state(),
        "bad_images": _collect_bad_images(parts),
        **({"ranks": parts.world.gather(_on_host(own))} if parts.world.world_size > 1 else {}),
    }


def restore_entries(parts: "TrainerParts", entries: dict[str, Any]) -> TrainState:
    """Put the parts where `entries` were collected. Learning rates and weight decay stay the config's.

    Raises:
        ConfigError: the position is none that this run can be at.
        AttributeError, KeyError, TypeError, ValueError, RuntimeError: the entries are of other parts.
    """
    position, recovery = entries["position"], entries["recovery"]
    state = TrainState(
        **{name: position[name] for name in POSITION},
        **{name: recovery[name] for name in RECOVERY},
        elapsed_seconds=entries["elapsed_seconds"],
        metrics=dict(entries["metrics"]),
        temperature=entries.get("temperature", 1.0),
    )
    refuse_impossible_position(state, parts.train_loader.num_batches, entries["planned_steps"])
    of_config = [(group["initial_lr"], group["weight_decay"]) for group in parts.optimizer.param_groups]
    for name in STATEFUL:
        getattr(parts, name).load_state_dict(entries[name])
    for group, (lr, weight_decay) in zip(parts.optimizer.param_groups, of_config, strict=True):
        group["initial_lr"], group["weight_decay"] = lr, weight_decay
    _restore_rank(parts, entries)
    for split, loader in (("train", parts.train_loader), ("val", parts.val_loader)):
        rows = entries["bad_images"][split]
        loader.bad_images |= {index: BadImage(index, name, cause) for index, name, cause in rows}
    return state


def _restore_rank(parts: "TrainerParts", entries: dict[str, Any]) -> None:
    """Put back what each rank had for itself; with another number of ranks, what can be."""
    world = parts.world
    ranks = entries.get("ranks") or [{"window": entries["window"], "generators": entries["generators"]}]
    if world.rank < len(ranks):
        set_rng_state(ranks[world.rank]["generators"], parts.device)
    if len(ranks) == world.world_size:
        parts.window.load_state_dict(ranks[world.rank]["window"])
        return
    if world.is_main_process:
        log.warning(
            "the run had %d process%s so far and resumes with %d: it trains on the same batches, but what each process "
            "draws or measures by itself (dropout, mixup, batch norm) differs, and sums are rounded in another order",
            len(ranks),
            "" if len(ranks) == 1 else "es",
            world.world_size,
        )
    sums = {name: torch.stack([rank["window"][name] for rank in ranks]).sum(dim=0) for name in ranks[0]["window"]}
    parts.window.load_state_dict({name: total * (world.rank == 0) for name, total in sums.items()})


def _collect_bad_images(parts: "TrainerParts") -> dict[str, list[list[Any]]]:
    """Return index, name and cause of what could not be read, of all ranks, by split."""
    own = {
        split: [[bad.index, bad.name, bad.cause] for bad in loader.bad_images.values()]
        for split, loader in (("train", parts.train_loader), ("val", parts.val_loader))
    }
    ranks = parts.world.gather(own)
    return {split: [list(row) for row in {tuple(row): None for rank in ranks for row in rank[split]}] for split in own}


def reached_limit(config: TrainerConfig, state: TrainState, monitor: Monitor, seconds: float) -> StopReason | None:
    """Return which limit of `config` the run has reached after `seconds`; None: it goes on."""
    if config.early_stop_patience is not None and monitor.num_bad_evals >= config.early_stop_patience:
        return StopReason.early_stop
    if config.max_steps is not None and state.step >= config.max_steps:
        return StopReason.max_steps
    if config.max_minutes is not None and seconds >= config.max_minutes * 60:
        return StopReason.max_minutes
    return StopReason.epochs if state.epoch >= config.epochs else None


def planned_steps(config: TrainerConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole run, which schedules are stretched over."""
    steps = config.epochs * steps_per_epoch
    return steps if config.max_steps is None else min(steps, config.max_steps)


def refuse_impossible_position(state: TrainState, steps_per_epoch: int, planned_steps: int) -> None:
    """Raise ConfigError for a position that no run can be at.

    Args:
        steps_per_epoch: of the run that resumes.
        planned_steps: of the run that was saved.
    """
    rules = (
        ("step", state.step, 0 <= state.step <= planned_steps, f"0 to {planned_steps}, the steps of its run"),
        ("epoch", state.epoch, 0 <= state.epoch <= state.step + 1, f"0 to {state.step + 1}, its steps"),
        ("batch", state.batch, 0 <= state.batch <= steps_per_epoch, f"0 to {steps_per_epoch}, the batches of an epoch"),
        ("evaluated_step", state.evaluated_step, -1 <= state.evaluated_step <= state.step, f"-1 to {state.step}"),
    )
    for name, value, is_possible, rule in rules:
        if not is_possible:
            raise ConfigError(
                key="resume",
                value=f"{name} {value}",
                rule=f"the checkpoint's position is impossible: {name} can be {rule}",
                remedy="resume from another checkpoint with the data of its run, or start a new run",
            )


def _on_host(value: Any) -> Any:
    """Return a nested dict of tensors and plain values with its tensors on the CPU."""
    if isinstance(value, dict):
        return {name: _on_host(item) for name, item in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value
