"""How the processes of a run talk. Alone, every method is the same without the others."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cvtrain.distributed.env import Rank
from cvtrain.distributed.errors import LostProcessError

T = TypeVar("T")

# Others may wait this long while one fills a cache, scores or writes plots.
PATIENCE = timedelta(minutes=30)


class ProcessGroup:
    """A run of one process. `TorchProcessGroup` is the same for several.

    All processes call the same methods in the same order.
    """

    rank = 0
    world_size = 1
    local_rank = 0
    local_world_size = 1
    node = ""

    @property
    def is_main_process(self) -> bool:
        """True for the process that decides, logs and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all have come here."""

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, for all. Anything that can be pickled."""
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all by rank, on rank 0; elsewhere an empty list."""
        return [value]

    def all_gather(self, value: T) -> list[T]:
        """The values of all by rank, for all."""
        return [value]

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` by the sum of those of all; equal to the bit everywhere. Does not wait for a GPU."""
        return tensor

    def all_reduce_async(self, tensor: torch.Tensor) -> Any:
        """Begin `all_reduce_`; what is returned has `wait()`, after which the sum is there."""
        raise AssertionError("there is nobody to add to")

    def all_true(self, flag: torch.Tensor) -> torch.Tensor:
        """() bool on the device: whether `flag` is true everywhere. Does not wait for a GPU."""
        return flag

    def all_reduce_scalars(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all of each number, on the host, at the cost of a message and an answer."""
        return list(numbers)

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace `tensors` by those of rank 0."""

    def passing(self) -> contextlib.AbstractContextManager[None]:
        """Around passes of a network that talks to the other processes itself: their end is told as everywhere."""
        return contextlib.nullcontext()

    def local_main_first(self) -> contextlib.AbstractContextManager[None]:
        """Inside, one process of each machine comes first, and the others when it is through.

        For what the first one keeps for all: downloads, caches.
        """
        return contextlib.nullcontext()


SINGLE_PROCESS = ProcessGroup()


class TorchProcessGroup(ProcessGroup):
    """A run of several processes, over gloo for what lies on the host and NCCL for what lies on GPUs."""

    def __init__(self, rank: Rank, store: dist.Store) -> None:
        """Meet the others; returns when all are there. `store` is common to all of them."""
        self.rank = rank.rank
        self.world_size = rank.world_size
        self.node = rank.node
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        with self._talking():
            dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=PATIENCE)
        if rank.local_rank is None or rank.local_world_size is None:
            nodes = self.all_gather(self.node)
            self.local_rank = nodes[: self.rank].count(self.node)
            self.local_world_size = nodes.count(self.node)
        else:
            self.local_rank, self.local_world_size = rank.local_rank, rank.local_world_size

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo raises no type of its own
            raise LostProcessError(
                f"another process of this run has ended or cannot be reached{_why(error)}"
            ) from error

    def barrier(self) -> None:
        self.all_reduce_scalars([0.0])

    def broadcast(self, value: T) -> T:
        values = [value if self.is_main_process else None]
        with self._talking():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.world_size if self.is_main_process else None
        with self._talking():  # through the host, also where there are GPUs
            dist.gather_object(value, values, dst=0)
        return values or []

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.world_size
        with self._talking():
            dist.all_gather_object(values, value)
        return values

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._talking():
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_async(self, tensor: torch.Tensor) -> Any:
        with self._talking():
            return _Pending(self, dist.all_reduce(tensor, async_op=True))

    def all_true(self, flag: torch.Tensor) -> torch.Tensor:
        missing = (~flag).to(torch.int32)
        return self.all_reduce_(missing) == 0

    def all_reduce_scalars(self, numbers: Sequence[float]) -> list[float]:
        return self.all_reduce_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def broadcast_(self, tensors: Sequence[torch.Tensor]) -> None:
        with self._talking():
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, src=0)
                tensor.detach().copy_(dense)

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            with self._talking():
                raise

    @contextlib.contextmanager
    def local_main_first(self) -> Iterator[None]:
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()


def _why(error: RuntimeError) -> str:
    """What gloo or NCCL says, without the place in their source and their advice."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().partition("\n")[0])
    return f": {text.partition('. This is ')[0]}" if text else ""


class _Pending:
    """A sum under way."""

    def __init__(self, group: TorchProcessGroup, work: Any) -> None:
        self._group = group
        self._work = work

    def wait(self) -> None:
        with self._group._talking():
            self._work.wait()
