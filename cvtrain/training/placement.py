"""Where a run computes: the device of each process, and whether its weights are whole there."""

import logging

import torch
from torch import nn

from cvtrain.config.schema.root import Config
from cvtrain.config.schema.trainer import Parallel
from cvtrain.distributed.fsdp import WholeWeights, build_weights, num_own_bytes
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.models.fsdp_units import choose_units
from cvtrain.runtime.device import select_device, visible_gpus

log = logging.getLogger(__name__)


def device_for_rank(config: Config, world: ProcessGroup) -> torch.device:
    """The device of this process."""
    if (
        world.is_main_process
        and world.world_size > 1
        and config.trainer.devices not in (1, "auto", world.local_world_size)
    ):
        log.warning(
            "trainer.devices=%s has no effect: %d processes were started on this machine",
            config.trainer.devices,
            world.local_world_size,
        )
    name = config.trainer.device
    if world.world_size > 1 and sees_one_gpu_each(visible_gpus(), world):
        device = select_device(name)
    else:
        device = select_device(name, local_rank=world.local_rank, num_processes=world.local_world_size)
    if device.type == "cuda" and world.world_size > 1:
        torch.cuda.set_device(device)
    return device


def sees_one_gpu_each(gpus: list[str], world: ProcessGroup) -> bool:
    """True if each process of each machine sees one GPU, and each another, as with Slurm's --gpus-per-task.

    Args:
        gpus: ids of those that this process sees.
    """
    seen = world.all_gather((world.node, tuple(gpus)))
    return all(len(ids) == 1 for _, ids in seen) and len(set(seen)) == world.world_size


def choose_weights(config: Config, device: torch.device, world: ProcessGroup) -> WholeWeights:
    """Whole weights in each process, or spread over all of them, by `trainer.parallel`."""
    wanted = config.trainer.parallel is Parallel.fsdp
    if wanted and world.world_size == 1:
        log.warning("trainer.parallel=fsdp has no effect on a run of one process; start more with trainer.devices=N")
    return build_weights(world, device, sharded=wanted and world.world_size > 1)


def spread(config: Config, weights: WholeWeights, model: nn.Module, average: nn.Module) -> None:
    """Leave this process's part of the weights in `model`, and in its average if that is another network."""
    data = config.data
    units = choose_units(model, (data.channels, data.image_size, data.image_size))
    total = num_own_bytes(model.parameters())
    for module in (model,) if average is model else (model, average):
        weights.spread(module, units)
    log.info(
        "weights: %.1f of %.1f MiB in this process; whole for the time of their use: %s",
        num_own_bytes(model.parameters()) / 2**20,
        total / 2**20,
        ", ".join((*units, "all else" if units else "the network")),
    )
