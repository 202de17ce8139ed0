"""`DataWorkers`: processes that make whole batches, through torch's DataLoader."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.data.images.errors import BadImage
from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.sampler import BatchIndices, EpochSampler
from cvtrain.data.loader.worker_errors import WorkerSettings, explain_worker_error, raise_open_file_limit
from cvtrain.runtime.signals import SIGNALS

# Seconds that a killed worker may take to end, for instance in a read from a network disk.
_KILL_SECONDS = 5.0


class DataWorkers:
    """Worker processes and the shared memory in which they make batches.

    They start with `start` or the first epoch and stay until `close`. The batches of an epoch take turns in a ring of
    slots of shared memory, and are copied out of it when they arrive. Shared memory that was new for each batch would
    have to be mapped and cleared page by page: as much work as a crop of each image.

    Args:
        dataset: makes a batch from its indices.
        plan: which images make which batch.
        num_workers: W, at least 1.
        prefetch_batches: P, batches that each worker makes ahead.
        pin_memory: batches come in page-locked memory; needs a CUDA device.
    """

    def __init__(
        self, *, dataset: BatchDataset, plan: EpochSampler, num_workers: int, prefetch_batches: int, pin_memory: bool
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.settings = WorkerSettings(num_workers, prefetch_batches, plan.batch_size)
        self.pin_memory = pin_memory
        # The batch that is copied out, and W * P tasks that DataLoader has given to workers meanwhile.
        self._tasks = _EpochTasks(plan, num_slots=num_workers * prefetch_batches + 1)
        self._slots: _Slots | None = None
        self._loader: DataLoader[Any] | None = None
        self._iterator: Iterator[Any] | None = None
        self._processes: list[BaseProcess] = []
        self._finalizer: weakref.finalize[..., DataWorkers] | None = None

    def start(self) -> None:
        """Start the workers, unless they run already.

        Raises:
            DataWorkerError: they cannot be started.
        """
        if self._loader is None:
            with self._explained_errors():
                self._start()

    def epoch(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        """The batches of `epoch` from number `start_batch` on.

        Raises:
            DataWorkerError: a worker died, or batches can no longer be sent. All workers have been ended.
            Exception: what the dataset raised, of the same type if torch can build one from a text, with the worker's
                traceback in that text.
        """
        self.start()
        with self._explained_errors():
            self._tasks.epoch, self._tasks.start_batch = epoch, start_batch
            assert self._loader is not None
            self._iterator = iter(self._loader)  # discards what is left of an unfinished epoch
        while True:
            with self._explained_errors():
                assert self._iterator is not None, "the workers were ended"
                made = next(self._iterator, None)
                if isinstance(made, Exception):
                    raise made
            if made is None:
                return
            yield self._receive(made)

    def close(self, *, kill: bool = False) -> None:
        """End the workers, which may finish their batch first unless `kill` is set. A later epoch starts new ones."""
        if kill:
            _kill(self._processes, os.getpid())
        # DataLoader has no method for it: it ends its workers when nothing refers to its iterator any more.
        self._loader = self._iterator = self._slots = None
        if self._finalizer is not None:
            atexit.unregister(self._finalizer)
            self._finalizer()  # for workers that are left, because something else refers to the iterator
            self._finalizer = None
        self._processes = []

    def _start(self) -> None:
        raise_open_file_limit()
        self._slots = _Slots(
            torch.empty((self._tasks.num_slots, self._slot_bytes()), dtype=torch.uint8).share_memory_(),
            torch.full((self._tasks.num_slots,), -1).share_memory_(),
        )
        self._tasks.start_batch = self.plan.num_batches  # no task yet
        before = multiprocessing.active_children()
        try:
            with _quiet_start(), _unchanged_sigchld_handler():
                self._loader = DataLoader(
                    _WorkerDataset(self.dataset, self._slots),
                    sampler=self._tasks,
                    batch_size=None,  # the dataset makes whole batches
                    collate_fn=_as_it_is,
                    num_workers=self.settings.num_workers,
                    prefetch_factor=self.settings.prefetch_batches,
                    persistent_workers=True,
                    worker_init_fn=_init_worker,
                    # DataLoader draws a seed in each epoch, by default from the global generator.
                    generator=torch.Generator(),
                )
                self._iterator = iter(self._loader)
        finally:
            self._processes = [process for process in multiprocessing.active_children() if process not in before]
        # Workers ignore SIGTERM, by which multiprocessing ends them at the exit of Python: this comes before it.
        self._finalizer = weakref.finalize(self, _kill, self._processes, os.getpid())
        self._finalizer.atexit = False
        atexit.register(self._finalizer)

    def _slot_bytes(self) -> int:
        # A short last batch may leave one image more to a rank than a full one.
        largest = -(-self.plan.batch_size // self.plan.world_size) + 1
        return largest * self.dataset.image_bytes

    def _receive(self, made: "_MadeBatch") -> Batch:
        """Copy a batch out of its slot."""
        assert self._slots is not None
        size, channels = self.dataset.image_size, self.dataset.channels
        shared = self._slots.memory[made.slot, : len(made.labels) * self.dataset.image_bytes]
        images = shared.view(len(made.labels), size, size, channels).permute(0, 3, 1, 2)  # (B, C, S, S)
        labels, indices = torch.from_numpy(made.labels), torch.from_numpy(made.indices)
        batch = Batch(images, labels, indices, made.bad, made.epoch, made.number, made.seconds)
        if self.pin_memory:
            batch = batch.pin_memory()
        else:
            batch.images = images.clone()
        assert self._slots.numbers[made.slot] == made.number, "a slot was overwritten while it was read"
        return batch

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """End all workers at an error. If it comes from a worker's death or from transport, raise it in words."""
        try:
            yield
        except Exception as error:
            exit_codes = [process.exitcode for process in self._processes if process.exitcode is not None]
            explained = explain_worker_error(error, exit_codes, self.settings)
            self.close(kill=True)
            if explained is None:
                raise
            raise explained from None


@dataclass
class _Slots:
    """Shared memory: (num_slots, bytes) uint8 of images, and (num_slots,) int64 number of the batch in each."""

    memory: torch.Tensor
    numbers: torch.Tensor


@dataclass
class _MadeBatch:
    """A batch as it travels: labels and indices by value, since a shared tensor would hold a file open."""

    slot: int
    labels: np.ndarray
    indices: np.ndarray
    bad: list[BadImage]
    epoch: int
    number: int
    seconds: dict[str, float]


class _EpochTasks(Sampler[tuple[int, BatchIndices]]):
    """(slot, indices) of the batches from `start_batch` on of `epoch`, both of which are set before each iteration."""

    def __init__(self, plan: EpochSampler, *, num_slots: int) -> None:
        self.plan = plan
        self.num_slots = num_slots
        self.epoch = 0
        self.start_batch = 0

    def __iter__(self) -> Iterator[tuple[int, BatchIndices]]:
        for position, key in enumerate(self.plan.batches(self.epoch, self.start_batch)):
            yield position % self.num_slots, key

    def __len__(self) -> int:
        return self.plan.num_batches - self.start_batch


class _WorkerDataset(Dataset["_MadeBatch | Exception"]):
    """Makes batches in the slots."""

    def __init__(self, dataset: BatchDataset, slots: _Slots) -> None:
        self.dataset = dataset
        self.slots = slots

    def __getitem__(self, task: tuple[int, BatchIndices]) -> "_MadeBatch | Exception":
        slot, key = task
        self.slots.numbers[slot] = key.number
        try:
            batch = self.dataset.make(key, memory=self.slots.memory[slot])
        except (ConfigError, RunError) as error:
            return error  # as a value, since torch would rebuild it from its text alone
        labels, indices = batch.labels.numpy(), batch.indices.numpy()
        return _MadeBatch(slot, labels, indices, batch.bad, batch.epoch, batch.number, batch.seconds)


def _as_it_is(made: Any) -> Any:
    return made


def _init_worker(worker: int) -> None:
    """Set up a worker: one thread, and no reaction to signals that a terminal or batch system sends to a whole job.

    The main process handles those: it finishes its step, saves, and ends its workers.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # read when cv2 is imported later, by the reader or the augmentation
    if "cv2" in sys.modules:
        import cv2  # which a fork has already

        cv2.setNumThreads(0)


def _kill(processes: list[BaseProcess], owner: int) -> None:
    """Kill those of `processes` that run, if this is the process that started them and not a fork of it."""
    if os.getpid() != owner:
        return
    for process in processes:
        process.kill()
    for process in processes:
        process.join(_KILL_SECONDS)


@contextlib.contextmanager
def _unchanged_sigchld_handler() -> Iterator[None]:
    """Take back the handler that torch installs with its first workers.

    It raises when a worker dies, wherever the main process is: in a training step, or while it writes a checkpoint.
    Without it, a death is found when a batch has been waited for in vain, after 5 s at most.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Without two warnings: more workers than cores (a user set them), and a fork beside threads (torch's choice)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        yield
