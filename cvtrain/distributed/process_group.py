"""Collectives of the ranks of a run. In a run of one process every method works without the others."""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cvtrain.distributed.env import Rank
from cvtrain.distributed.errors import LostProcessError
from cvtrain.runtime.device import select_device, visible_gpus

log = logging.getLogger(__name__)

T = TypeVar("T")

# Ranks may wait this long while another one fills a cache, evaluates or writes plots.
TIMEOUT = timedelta(minutes=30)


class ProcessGroup:
    """A run of one process. `TorchProcessGroup` is the same for several.

    All ranks call the same methods in the same order.
    """

    rank = 0
    world_size = 1
    local_rank = 0
    local_world_size = 1
    node = ""

    @property
    def is_main_process(self) -> bool:
        """True for rank 0, which decides, logs and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def broadcast(self, value: T) -> T:
        """Return rank 0's `value`, which can be anything that pickle takes."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all by rank, on rank 0; elsewhere an empty list."""
        return [value]

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all by rank."""
        return [value]

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by the sum of those of all ranks, equal to the bit in all. Does not wait for a GPU."""
        return tensor

    def all_true(self, flag: torch.Tensor) -> torch.Tensor:
        """Return () bool on the device: whether `flag` is true in all ranks. Does not wait for a GPU."""
        return flag

    def all_reduce_scalars(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over all ranks of each number, on the host, at the cost of a message and an answer."""
        return list(numbers)

    def all_gather_scalars(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of all by rank, on the host, at the cost of a message and an answer."""
        return [list(numbers)]

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace `tensors` by those of rank 0."""

    def translate_errors(self) -> contextlib.AbstractContextManager[None]:
        """Surround passes of a network with collectives of its own: a lost rank raises `LostProcessError` there too."""
        return contextlib.nullcontext()

    def local_main_first(self) -> contextlib.AbstractContextManager[None]:
        """Let one rank of each machine run the block first, the others after it, for downloads and caches."""
        return contextlib.nullcontext()


SINGLE_PROCESS = ProcessGroup()


class TorchProcessGroup(ProcessGroup):
    """A run of several processes: gloo for tensors on the host, NCCL for those on GPUs."""

    def __init__(self, rank: Rank, store: dist.Store) -> None:
        """Initialize torch's process group over `store`; returns when all ranks have connected."""
        self.rank = rank.rank
        self.world_size = rank.world_size
        self.node = rank.node
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        with self._translate_runtime_errors():
            dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=TIMEOUT)
        if rank.local_rank is None or rank.local_world_size is None:
            nodes = self.all_gather(self.node)
            self.local_rank = nodes[: self.rank].count(self.node)
            self.local_world_size = nodes.count(self.node)
        else:
            self.local_rank, self.local_world_size = rank.local_rank, rank.local_world_size

    @contextlib.contextmanager
    def _translate_runtime_errors(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo raises no type of its own
            raise LostProcessError(
                f"another process of this run has ended or cannot be reached{_reason_in(error)}"
            ) from error

    def barrier(self) -> None:
        self.all_reduce_scalars([0.0])

    def broadcast(self, value: T) -> T:
        values = [value if self.is_main_process else None]
        with self._translate_runtime_errors():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.world_size if self.is_main_process else None
        with self._translate_runtime_errors():  # through the host, also where there are GPUs
            dist.gather_object(value, values, dst=0)
        return values or []

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.world_size
        with self._translate_runtime_errors():
            dist.all_gather_object(values, value)
        return values

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._translate_runtime_errors():
            dist.all_reduce(tensor)
        return tensor

    def all_true(self, flag: torch.Tensor) -> torch.Tensor:
        missing = (~flag).to(torch.int32)
        return self.all_reduce_(missing) == 0

    def all_reduce_scalars(self, numbers: Sequence[float]) -> list[float]:
        return self.all_reduce_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def all_gather_scalars(self, numbers: Sequence[float]) -> list[list[float]]:
        own = torch.tensor(numbers, dtype=torch.float64)
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        with self._translate_runtime_errors():
            dist.all_gather(parts, own)
        return [part.tolist() for part in parts]

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        with self._translate_runtime_errors():
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, src=0)
                tensor.detach().copy_(dense)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            with self._translate_runtime_errors():
                raise

    @contextlib.contextmanager
    def local_main_first(self) -> Iterator[None]:
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()


def _reason_in(error: RuntimeError) -> str:
    """Return the message of gloo or NCCL without the place in their source and their advice."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().partition("\n")[0])
    return f": {text.partition('. This is ')[0]}" if text else ""


def device_for_rank(name: str, world: ProcessGroup) -> torch.device:
    """Return the device of this rank for `trainer.device=name`: the GPU of its number, or the only one it sees."""
    if world.world_size > 1 and sees_one_gpu_each(visible_gpus(), world):
        device = select_device(name)
    else:
        device = select_device(name, local_rank=world.local_rank, num_processes=world.local_world_size)
    if device.type == "cuda" and world.world_size > 1:
        torch.cuda.set_device(device)
    return device


def sees_one_gpu_each(gpus: list[str], world: ProcessGroup) -> bool:
    """Return True if each rank sees one GPU, each another, as with Slurm's --gpus-per-task.

    Args:
        gpus: ids of those that this process sees.
    """
    seen = world.all_gather((world.node, tuple(gpus)))
    return all(len(ids) == 1 for _, ids in seen) and len(set(seen)) == world.world_size
