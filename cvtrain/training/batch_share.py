"""What one process of a run does with a batch: whether it trains on it, in how many parts, and with what weight.

For a process that is alone, all of it is its own; of several, each has some images of each batch, or none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from cvtrain.data.build import Batch
from cvtrain.distributed.coordinator import Coordinator
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.distributed.sync_batchnorm import frozen_batch_norm, is_synced


class BatchShare:
    """This process's share of the batch at hand.

    Args:
        batch_size: that of a full batch over all processes.
        in_parts: the network's weights are spread over the processes, which all take part in each pass.
    """

    def __init__(
        self,
        world: ProcessGroup,
        coordinator: Coordinator,
        model: nn.Module,
        *,
        batch_size: int,
        in_parts: bool = False,
    ) -> None:
        self._world = world
        self._model = model
        self._agreement = coordinator
        self._batch_size = batch_size
        self._has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        # All processes talk in each forward pass then, and so need equally many.
        self._shares_batch_norm = world.world_size > 1 and any(map(is_synced, model.modules()))
        self.talks_in_forward = self._shares_batch_norm or in_parts
        self.num_images = 0
        self._own_weight: torch.Tensor | None = None

    def count(self, batch: Batch) -> int:
        """Images of the batch that all processes are going to train on, which `num_images` is then; 0: no step."""
        if self._shares_batch_norm:
            total = self._agreement.exchange(len(batch))
            self.num_images = 0 if total == 1 < self._batch_size else total
        else:
            self.num_images = self._agreement.exchange(len(batch) if self._is_trainable(len(batch)) else 0)
        return self.num_images

    def takes_part(self, batch: Batch) -> bool:
        """Whether this process has something to do in a step that others do."""
        return self._world.world_size == 1 or self.talks_in_forward or self._is_trainable(len(batch))

    def _is_trainable(self, num_images: int) -> bool:
        """False for a batch with no image left, or with a single one, whose batch statistics mean nothing."""
        if num_images == 0:
            return False
        return num_images > 1 or not self._has_batch_norm or self._batch_size < 2 * self._world.world_size

    def largest(self, batch: Batch) -> int:
        """Images of the batch that some process has at least."""
        return len(batch) if self._world.world_size == 1 else -(-self.num_images // self._world.world_size)

    def split(
        self, images: torch.Tensor, targets: torch.Tensor, num_parts: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Images and targets of each micro-batch, of at most `num_parts`."""
        parts = min(num_parts, len(images))
        if self.talks_in_forward:
            parts = min(num_parts, -(-self.num_images // self._world.world_size))
            if not self._shares_batch_norm and not self._is_trainable(len(images)):
                images, targets = images[:0], targets[:0]
        if parts == 1:
            return [(images, targets)]
        return list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))

    def outputs(self, forward: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        """What `forward`, a pass through the network, gives for a micro-batch.

        Without images two black ones go through a network in parts, for the sake of the other processes, and change
        no statistics. (Many networks do not take a batch of none.)
        """
        if len(images) or self._shares_batch_norm or not self.talks_in_forward:
            return forward(images)
        with frozen_batch_norm(self._model):
            return forward(images.new_zeros((2, *images.shape[1:])))

    def usual_split(self, num_parts: int) -> tuple[int, int]:
        """Images of a micro-batch of this process's share of a full batch, and how many micro-batches that has."""
        share, more = divmod(self._batch_size, self._world.world_size)
        share += self._world.rank < more
        parts = min(num_parts, share)
        return -(-share // parts), parts

    def total_weight(self, weights: Sequence[torch.Tensor | int], num_images: int) -> torch.Tensor | int:
        """What the losses of this process's micro-batches are divided by, so that they add up to the batch's mean."""
        own = sum(weights)
        if self._world.world_size == 1:
            return num_images if isinstance(own, int) else own
        # With class weights, a mean is over the weights of all processes' images; `divide_by_weight` asks for them.
        self._own_weight = None if isinstance(own, int) else own
        return self.num_images

    def divide_by_weight(self, gradients: list[torch.Tensor], device: torch.device) -> None:
        """Bring the sum of all processes' gradients to the mean by class weights; by all processes, or none."""
        own = torch.zeros((), device=device) if self._own_weight is None else self._own_weight
        self._own_weight = None
        torch._foreach_mul_(gradients, self.num_images / self._world.all_reduce_(own))
