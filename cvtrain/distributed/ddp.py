"""The gradient of the whole batch out of those of the processes' shares of it.

As torch's DistributedDataParallel does (Li et al. 2020), parameters are put into buckets from the last to the first,
and a bucket travels as soon as its gradients are there, while the backward pass goes on. Unlike there,

- buckets stay as they are from the first step on, and so does the order in which numbers are added: a run that goes on
  from a checkpoint comes to the same bits with any number of processes;
- a process may have no images at all, or run out of memory, and the others are not left waiting: it sends zeros, and
  all learn in time whether the step counts;
- gradients are summed, not averaged: each process weighs its loss by its share of the batch.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cvtrain.distributed.fsdp import WholeWeights
from cvtrain.distributed.process_group import ProcessGroup

BUCKET_BYTES = 25 * 2**20


class GradientSum:
    """Of a process that is alone: nothing to add. `SharedGradientSum` is the same for several."""

    def watch(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """The parameters whose gradients are added from now on."""

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around the forward and backward passes of a step; behind it, gradients are those of the whole batch.

        Raises:
            torch.OutOfMemoryError: here or in another process; no gradient counts.
        """
        yield

    def begin_last_backward(self) -> None:
        """What comes next is the last backward pass of the step: gradients are complete one by one."""


@dataclass
class _Bucket:
    """Neighbours among the parameters, and the memory in which their gradients travel."""

    parameters: list[torch.nn.Parameter]
    flat: torch.Tensor
    num_ready: int = 0
    work: Any = None
    views: list[torch.Tensor] = field(default_factory=list)

    def pack(self) -> None:
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)


class SharedGradientSum(GradientSum):
    """Adds gradients over the processes of `world`."""

    def __init__(self, world: ProcessGroup, *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._world = world
        self._bucket_bytes = bucket_bytes
        self._parameters: list[torch.nn.Parameter] = []
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[torch.nn.Parameter, int] = {}
        self._hooks: list[Any] = []
        self._next = 0  # the bucket that travels next: all processes send them in the same order
        self._is_last = False

    def watch(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if len(trainable) == len(self._parameters) and all(map(_is, trainable, self._parameters)):
            return
        for hook in self._hooks:
            hook.remove()
        self._parameters = trainable
        self._buckets = list(_fill_buckets(trainable, self._bucket_bytes))
        self._bucket_of = {
            parameter: number for number, bucket in enumerate(self._buckets) for parameter in bucket.parameters
        }
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._note) for parameter in trainable]

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        self._next, self._is_last = 0, False
        for bucket in self._buckets:
            bucket.num_ready = 0
        try:
            yield
        except torch.OutOfMemoryError:
            self._finish(failed=True)
            raise
        self._finish(failed=False)

    def begin_last_backward(self) -> None:
        self._is_last = True

    def _note(self, parameter: torch.Tensor) -> None:
        """A gradient is complete, if this is the last backward pass."""
        if not self._is_last:
            return
        number = self._bucket_of[parameter]  # type: ignore[index]
        self._buckets[number].num_ready += 1
        while self._next < len(self._buckets) and self._is_full(self._buckets[self._next]):
            self._send_next()

    def _is_full(self, bucket: _Bucket) -> bool:
        return bucket.num_ready == len(bucket.parameters)

    def _send_next(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        bucket.pack()
        bucket.work = self._world.all_reduce_async(bucket.flat)

    def _finish(self, *, failed: bool) -> None:
        self._is_last = False
        while self._next < len(self._buckets):
            self._send_next()
        # A parameter that the step used nowhere keeps no gradient: zero is another thing to an optimizer.
        used = [0.0 if parameter.grad is None else 1.0 for parameter in self._parameters]
        num_failed, *used = self._world.all_reduce_scalars([float(failed), *used])
        for bucket in self._buckets:
            bucket.work.wait()
        if num_failed:
            if not failed:
                raise torch.OutOfMemoryError("another process of this run ran out of memory")
            return
        is_used = {parameter for parameter, count in zip(self._parameters, used, strict=True) if count}
        for bucket in self._buckets:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter not in is_used:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(view)


class ShardedGradients(GradientSum):
    """Of a network whose weights are spread: torch adds each part's gradients as soon as they are complete.

    So it does in each micro-batch, since gradients that wait for the last one would be whole on each process.
    """

    def __init__(self, weights: WholeWeights, optimizer: torch.optim.Optimizer) -> None:
        self._weights = weights
        self._optimizer = optimizer

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        with self._weights.world.passing():
            yield
        self._weights.take_gradients(self._optimizer)


def build_gradient_sum(world: ProcessGroup, weights: WholeWeights, optimizer: torch.optim.Optimizer) -> GradientSum:
    if weights.is_sharded:
        return ShardedGradients(weights, optimizer)
    return GradientSum() if world.world_size == 1 else SharedGradientSum(world)


def _fill_buckets(parameters: Sequence[torch.nn.Parameter], limit: int) -> Iterator[_Bucket]:
    """Buckets from the last parameter to the first, since backward comes to the last first."""
    waiting: list[torch.nn.Parameter] = []
    for parameter in reversed(parameters):
        num_bytes = sum(each.numel() * each.element_size() for each in (*waiting, parameter))
        is_alike = not waiting or (waiting[0].dtype, waiting[0].device) == (parameter.dtype, parameter.device)
        if waiting and (num_bytes > limit or not is_alike):
            yield _make_bucket(waiting)
            waiting = []
        waiting.append(parameter)
    if waiting:
        yield _make_bucket(waiting)


def _make_bucket(parameters: list[torch.nn.Parameter]) -> _Bucket:
    size = sum(parameter.numel() for parameter in parameters)
    flat = torch.zeros(size, dtype=parameters[0].dtype, device=parameters[0].device)
    parts = flat.split([parameter.numel() for parameter in parameters])
    # In the parameters' own order of memory, so that channels_last gradients are copied straight.
    views = [
        part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
        if torch.ops.aten.is_non_overlapping_and_dense(parameter)
        else part.view(parameter.shape)
        for part, parameter in zip(parts, parameters, strict=True)
    ]
    return _Bucket(list(parameters), flat, views=views)


def _is(one: object, other: object) -> bool:
    return one is other
