"""Everything that a run needs to go on, out of a trainer and back into one."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from cvtrain.checkpoint import latest_checkpoint, load_checkpoint
from cvtrain.data.images.errors import BadImage
from cvtrain.runtime.rng import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from cvtrain.training.trainer import Trainer

log = logging.getLogger(__name__)


def training_state(trainer: "Trainer") -> dict[str, Any]:
    """The state after the last step: tensors (where they are) and plain values.

    Of several processes all call it, and rank 0 gets what each has for itself too, under `ranks`.
    """
    several = trainer.world.world_size > 1
    return {
        "model": trainer.weights.state(trainer.model),
        "average": trainer.average.state_dict(),
        "optimizer": trainer.weights.optimizer_state(trainer.optimizer),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "monitor": trainer.monitor.state_dict(),
        "window": trainer.window.state_dict(),
        "stopwatch": trainer.stopwatch.state_dict(),
        "generators": get_rng_state(trainer.device),
        "position": {
            "step": trainer.step,
            "epoch": trainer.epoch,
            "batch": trainer.batch,
            "epoch_end_due": trainer.epoch_end_due,
            "evaluated_step": trainer.evaluated_step,
        },
        "faults": {
            "num_micro_batches": trainer.num_micro_batches,
            "num_skipped_steps": trainer.num_skipped_steps,
            "num_rollbacks": trainer.num_rollbacks,
            "lr_scale": trainer.lr_scale,
        },
        "elapsed_seconds": trainer.seconds_so_far(),
        "metrics": trainer.last_metrics,
        "loggers": trainer.logger.state(),
        "bad_images": _bad_images(trainer),
        **({"ranks": trainer.world.gather(_own_state(trainer))} if several else {}),
    }


def _bad_images(trainer: "Trainer") -> dict[str, list[list[Any]]]:
    """Index, name and cause of what could not be read, of all processes, by split."""
    own = {
        split: [[bad.index, bad.name, bad.cause] for bad in loader.bad_images.values()]
        for split, loader in (("train", trainer.train_loader), ("val", trainer.val_loader))
    }
    parts = trainer.world.gather(own)
    return {split: [list(row) for row in {tuple(row): None for part in parts for row in part[split]}] for split in own}


def _own_state(trainer: "Trainer") -> dict[str, Any]:
    """What each process of a run has for itself."""
    window = {name: sums.cpu() for name, sums in trainer.window.state_dict().items()}
    generators = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in get_rng_state(trainer.device).items()
    }
    return {"window": window, "generators": generators}


def _restore_own_state(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Put back what each process had for itself; with another number of processes, what can be."""
    world = trainer.world
    ranks = state.get("ranks") or [{"window": state["window"], "generators": state["generators"]}]
    if len(ranks) == world.world_size:
        own = ranks[world.rank]
        trainer.window.load_state_dict(own["window"])
        set_rng_state(own["generators"], trainer.device)
        return
    if world.is_main_process:
        log.warning(
            "the run had %d process%s so far and goes on with %d: it trains on the same batches, but what each process "
            "draws or measures by itself (dropout, mixup, batch norm) differs, and sums are rounded in another order",
            len(ranks),
            "" if len(ranks) == 1 else "es",
            world.world_size,
        )
    sums = {name: torch.stack([part["window"][name] for part in ranks]).sum(dim=0) for name in ranks[0]["window"]}
    trainer.window.load_state_dict({name: total * (world.rank == 0) for name, total in sums.items()})
    if world.rank < len(ranks):
        set_rng_state(ranks[world.rank]["generators"], trainer.device)


def restore_training_state(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Put the trainer where `state` was taken. Rates and weight decay stay those of the trainer's own config."""
    config_rates = [
        (group["initial_lr"] / trainer.lr_scale, group["weight_decay"]) for group in trainer.optimizer.param_groups
    ]
    trainer.weights.load(trainer.model, state["model"])
    trainer.average.load_state_dict(state["average"])
    trainer.weights.load_optimizer(trainer.optimizer, state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.monitor.load_state_dict(state["monitor"])
    trainer.stopwatch.load_state_dict(state["stopwatch"])
    _restore_own_state(trainer, state)
    position, faults = state["position"], state["faults"]
    trainer.step, trainer.epoch, trainer.batch = position["step"], position["epoch"], position["batch"]
    trainer.epoch_end_due, trainer.evaluated_step = position["epoch_end_due"], position["evaluated_step"]
    trainer.num_micro_batches = max(faults["num_micro_batches"], trainer.settings.grad_accum_steps)
    trainer.num_skipped_steps, trainer.num_rollbacks = faults["num_skipped_steps"], faults["num_rollbacks"]
    for group, (rate, weight_decay) in zip(trainer.optimizer.param_groups, config_rates, strict=True):
        group["initial_lr"], group["weight_decay"] = rate, weight_decay
    trainer.lr_scale = 1.0
    scale_learning_rates(trainer, faults["lr_scale"])
    trainer.elapsed_seconds = state["elapsed_seconds"]
    trainer.last_metrics = state["metrics"]
    for split, loader in (("train", trainer.train_loader), ("val", trainer.val_loader)):
        loader.bad_images |= {index: BadImage(index, name, cause) for index, name, cause in state["bad_images"][split]}


def roll_back(trainer: "Trainer") -> bool:
    """Put the trainer, and its loggers, where its newest checkpoint was taken; False if there is none."""
    trainer.store.wait()
    found = latest_checkpoint(trainer.store.folder) if trainer.world.is_main_process else None
    path = trainer.world.broadcast(None if found is None else found[0])
    if path is None:
        return False
    state = load_checkpoint(path) if found is None else found[1]
    restore_training_state(trainer, state)
    trainer.logger.rewind(state["loggers"])
    return True


def scale_learning_rates(trainer: "Trainer", scale: float) -> None:
    """Set the peak rates to `scale` times those of the config."""
    for group in trainer.optimizer.param_groups:
        group["initial_lr"] = group["initial_lr"] / trainer.lr_scale * scale
    trainer.lr_scale = scale
