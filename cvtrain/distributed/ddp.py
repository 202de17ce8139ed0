"""Forward and backward of a training step, in one process or with DistributedDataParallel."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cvtrain.distributed.process_group import ProcessGroup


class Replica:
    """A network in a run of one process. `DistributedReplica` is the same for several.

    Attributes:
        forward: the network as training calls it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forward: Callable[[torch.Tensor], Any] = module

    def prepare(self) -> None:
        """Note the trainable parameters; call it before an epoch and after freezing or unfreezing."""

    def total_weight(self, own: torch.Tensor | int, num_images: int) -> torch.Tensor | float:
        """Return what the losses of a batch's parts are divided by, so that gradients are those of the batch's mean.

        Args:
            own: sum of the weights of this rank's images: their number, or () the sum of their class weights.
            num_images: of all ranks.
        """
        return own

    def gradients_of(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surround forward and backward of a micro-batch; gradients are those of all ranks after the `last` one."""
        return contextlib.nullcontext()


class DistributedReplica(Replica):
    """A network of which each rank has a copy.

    DistributedDataParallel (Li et al. 2020) averages gradients while the backward pass of the last micro-batch runs.
    It is made anew when the set of trainable parameters changes, which it cannot follow.

    Args:
        has_unused: some parameters get no gradient in a step; they are then searched for in each step.
    """

    def __init__(self, module: nn.Module, world: ProcessGroup, device: torch.device, *, has_unused: bool) -> None:
        super().__init__(module)
        self._module = module
        self._world = world
        self._device_ids = [device] if device.type == "cuda" else None
        self._has_unused = has_unused
        self._trainable: list[str] = []
        self._ddp: DistributedDataParallel | None = None
        self.forward = self._forward

    def prepare(self) -> None:
        trainable = [name for name, parameter in self._module.named_parameters() if parameter.requires_grad]
        if trainable == self._trainable:
            return
        with self._world.translate_errors(), warnings.catch_warnings():
            # Its successor does not exist in torch 2.6.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._ddp = DistributedDataParallel(
                self._module,
                device_ids=self._device_ids,
                broadcast_buffers=False,  # each rank's batch norm keeps statistics of its share; see Trainer.evaluate
                gradient_as_bucket_view=True,
                find_unused_parameters=self._has_unused,
            )
        self._trainable = trainable

    def total_weight(self, own: torch.Tensor | int, num_images: int) -> torch.Tensor | float:
        # The average over ranks divides by their number too.
        total = num_images if isinstance(own, int) else self._world.all_reduce_(own)
        return total / self._world.world_size

    @contextlib.contextmanager
    def gradients_of(self, *, last: bool) -> Iterator[None]:
        assert self._ddp is not None
        with self._world.translate_errors(), contextlib.nullcontext() if last else self._ddp.no_sync():
            yield

    def _forward(self, images: torch.Tensor) -> Any:
        assert self._ddp is not None
        return self._ddp(images)


def build_replica(module: nn.Module, world: ProcessGroup, device: torch.device, *, has_unused: bool = False) -> Replica:
    """Return `Replica`, or for several ranks `DistributedReplica`."""
    if world.world_size == 1:
        return Replica(module)
    return DistributedReplica(module, world, device, has_unused=has_unused)
