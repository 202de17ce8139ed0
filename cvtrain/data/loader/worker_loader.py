"""torch's DataLoader as `WorkerPool` uses it: whole batches by key, a quiet start, and an end also when that fails."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as MultiProcessingIterator

from cvtrain.data.loader.sampler import BatchIndices, EpochSampler
from cvtrain.data.loader.worker_process import Parcel, WorkerDataset, WorkerFailure, init_worker

# How long ending a killed worker, or the thread that pins memory, may take.
END_SECONDS = 6.0


class EpochKeys(Sampler[BatchIndices]):
    """The keys that a DataLoader iterates over: those of the epoch that was chosen last."""

    def __init__(self, plan: EpochSampler) -> None:
        self.plan = plan
        self.epoch = 0
        self.start_batch = 0

    def __iter__(self) -> Iterator[BatchIndices]:
        return self.plan.batches(self.epoch, self.start_batch)

    def __len__(self) -> int:
        return self.plan.num_batches - self.start_batch


class WorkerLoader(DataLoader[Parcel | WorkerFailure]):
    """A DataLoader that ends its workers if not all of them can be started. Its own end trips over what is missing."""

    def _get_iterator(self) -> Any:
        iterator = MultiProcessingIterator.__new__(MultiProcessingIterator)
        try:
            MultiProcessingIterator.__init__(iterator, self)
        except BaseException:
            iterator._shutdown = True
            for worker in getattr(iterator, "_workers", ()):
                worker.kill()
                worker.join(END_SECONDS)
            raise
        return iterator


def build_worker_loader(
    dataset: WorkerDataset, keys: EpochKeys, *, num_workers: int, prefetch_batches: int, pin_memory: bool
) -> WorkerLoader:
    """The loader; its workers start when it is iterated over for the first time, and stay."""
    with quiet_start():
        return WorkerLoader(
            dataset,
            sampler=keys,
            batch_size=None,  # the dataset makes whole batches
            num_workers=num_workers,
            prefetch_factor=prefetch_batches,
            persistent_workers=True,
            pin_memory=pin_memory,
            worker_init_fn=init_worker,
            # Of its own, since DataLoader draws a seed per epoch and would draw it from the global one.
            generator=torch.Generator(),
        )


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Without torch's warning at more workers than cores, which were asked for by name: data.num_workers.

    Python from 3.12 on warns of forks in a process with threads; how workers start is torch's choice.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        yield
