"""`WorkerPool`: processes that make batches. It ends cleanly, and says why, whatever becomes of one of them."""

import contextlib
import itertools
import multiprocessing.connection
import os
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from typing import Any, TypeVar

from torch.utils.data._utils import signal_handling

from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.loader.worker_errors import (
    PoolSettings,
    count_out_of_memory_kills,
    explain_death,
    explain_transport,
    raise_open_file_limit,
)
from cvtrain.data.loader.worker_loader import END_SECONDS, EpochKeys, WorkerLoader, build_worker_loader, quiet_start
from cvtrain.data.loader.worker_memory import BatchMemory
from cvtrain.data.loader.worker_process import BATCH_MEMORIES, Parcel, Whereabouts, WorkerDataset, WorkerFailure
from cvtrain.data.loader.worker_signals import DeathWatch, signals_held_back
from cvtrain.runtime.memory import malloc_trim

T = TypeVar("T")

# Batches of a worker's that may be in use besides those made ahead: one in the step, one on its way to the device, one
# being made.
_PLACES_IN_USE = 3

# Of the workers that were started together; never the same again, since parcels may outlive them.
_NUMBERS = itertools.count()

# A connection that breaks is mostly the first sign of a worker's death, which the system tells a moment later.
_DEATH_DELAY_SECONDS = 1.0


class WorkerPool:
    """Worker processes behind a DataLoader. They start with `start` or the first epoch and stay until `close`.

    torch tells of a dead worker by an exception from a signal handler, wherever the main process just is: in a step, or
    while a checkpoint is written. Here it comes from `epoch`, when the next batch is asked for or waited for.

    Args:
        dataset: makes a batch from its key.
        plan: which images make which batch.
        num_workers: processes, at least 1.
        prefetch_batches: batches that each makes ahead.
        pin_memory: batches come in page-locked memory; needs a CUDA device.
    """

    def __init__(
        self, *, dataset: BatchDataset, plan: EpochSampler, num_workers: int, prefetch_batches: int, pin_memory: bool
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.num_workers = num_workers
        self.prefetch_batches = prefetch_batches
        self.pin_memory = pin_memory
        self.settings = PoolSettings(num_workers, prefetch_batches, plan.batch_size)
        self._keys = EpochKeys(plan)
        self._whereabouts = Whereabouts(num_workers)
        self._loader: WorkerLoader | None = None
        self._iterator: Any = None  # torch's own class, which has no public name
        self._finalizer: weakref.finalize[..., WorkerPool] | None = None
        self._memory: BatchMemory | None = None
        self._kills_before = 0

    def epoch(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        """The batches of `epoch` from number `start_batch` on.

        Raises:
            DataWorkerError: a worker died, or batches cannot be sent any more; all other workers have been ended.
            Exception: what the dataset raised, with the worker's traceback as its cause.
        """
        with self._explaining_faults():
            self._begin(epoch, start_batch)
            for _ in range(start_batch, self.plan.num_batches):
                received = self._wait_for(self._receive)
                if isinstance(received, WorkerFailure):
                    self._kill()
                    received.reraise()
                else:
                    yield received

    def start(self) -> None:
        """Start the workers, which then wait for the first epoch.

        Raises:
            DataWorkerError: they cannot be started.
        """
        if self._iterator is None:
            with self._explaining_faults():
                self._begin(0, self.plan.num_batches)

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        if self._finalizer is None or not self._all_live():
            self._kill()
        else:
            self._finalizer()
        self._loader = self._iterator = self._finalizer = None

    # ------------------------------------------------------------------ batches

    @contextlib.contextmanager
    def _explaining_faults(self) -> Iterator[None]:
        try:
            yield
        except _Fault as fault:
            DeathWatch.end()  # once more: the signal may have come before `_wait_for` got to it
            raise self._end_by_fault(fault.error) from None

    def _wait_for(self, call: Callable[[], T]) -> T:
        """`call()`, which fails with `_Fault` at once when a worker dies meanwhile or was dead before."""
        DeathWatch.begin(self._check_workers)
        try:
            self._check_workers()
            return call()
        except _Fault:
            raise
        except Exception as error:
            raise _Fault(error) from error
        finally:
            DeathWatch.end()

    def _check_workers(self) -> None:
        if self._iterator is not None and not self._all_live():
            raise _Fault(None)

    def _all_live(self) -> bool:
        return all(worker.is_alive() for worker in self._iterator._workers)

    def _begin(self, epoch: int, start_batch: int) -> None:
        """Let the workers, which start if there are none, make the batches of `epoch` from `start_batch` on."""
        self._keys.epoch, self._keys.start_batch = epoch, start_batch
        self._wait_for(self._send_keys)

    def _send_keys(self) -> None:
        if self._loader is None:
            raise_open_file_limit()
            get_temp_dir()  # of this process, which removes it: a folder that a worker makes stays when it is killed
            self._kills_before = count_out_of_memory_kills()
            # A new one for new workers: those before may have died with places taken.
            self._memory = BatchMemory(self.num_workers, self.prefetch_batches + _PLACES_IN_USE)
            number = next(_NUMBERS)
            BATCH_MEMORIES[number] = self._memory
            self._loader = build_worker_loader(
                WorkerDataset(self.dataset, self._whereabouts, self.settings, self._memory, number),
                self._keys,
                num_workers=self.num_workers,
                prefetch_batches=self.prefetch_batches,
                pin_memory=self.pin_memory,
            )
        if self._iterator is not None:
            iter(self._loader)  # drains what an unfinished epoch left in the queues
            return
        malloc_trim()
        with quiet_start(), signals_held_back():
            self._iterator = iter(self._loader)  # the workers start
        self._take_over()

    def _receive(self) -> Batch | WorkerFailure:
        received = next(self._iterator, None)
        assert received is not None, "another epoch of this loader was started"
        return received.open() if isinstance(received, Parcel) else received

    def _take_over(self) -> None:
        """Keep torch from raising wherever the main process is, and see to it that workers can be ended."""
        signal_handling._remove_worker_pids(id(self._iterator))
        self._iterator._worker_pids_set = False
        for worker in self._iterator._workers:
            # Workers ignore SIGTERM; torch and multiprocessing call these on workers that do not end by themselves.
            worker.terminate = worker.kill
            worker._popen.terminate = worker._popen.kill
        # Left to the garbage collector, the queues may go first: each worker is then waited for 5 s and killed.
        self._finalizer = weakref.finalize(self, _end_workers, self._iterator, os.getpid())
        DeathWatch.install()

    # ------------------------------------------------------------------ faults

    def _end_by_fault(self, error: Exception | None) -> Exception:
        """End all workers; gives the error to raise: a `DataWorkerError`, or `error` itself if it is no such fault."""
        dead = self._dead_worker(wait=error is not None)
        fault: Exception | None = None
        if dead is not None:
            kills = count_out_of_memory_kills() - self._kills_before
            fault = explain_death(dead.exitcode, self._doing(dead), self.settings, out_of_memory_kills=kills)
        elif error is not None:
            fault = explain_transport(error, self.settings) or error
        self._kill()
        assert fault is not None
        return fault

    def _dead_worker(self, *, wait: bool) -> Any:
        """A worker that has ended, first of all one that a signal has; None if all live."""
        workers = [] if self._iterator is None else self._iterator._workers
        if workers and wait:
            ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], _DEATH_DELAY_SECONDS)
            for worker in workers:
                if worker.sentinel in ended:
                    worker.join(_DEATH_DELAY_SECONDS)  # its files close a moment before the system has its exit code
        dead = [worker for worker in workers if worker.exitcode is not None]
        return min(dead, key=lambda worker: worker.exitcode, default=None)

    def _doing(self, worker: Any) -> str:
        number, index = self._whereabouts.read(self._iterator._workers.index(worker))
        if number is None:
            return ""
        batch = f"batch {number + 1} of epoch {self._keys.epoch + 1}"
        if index is None:
            return f"while it made {batch}"
        return f"while it read or augmented {self.dataset.source.name(index)} for {batch}"

    def _kill(self) -> None:
        """End what is left, without its help: a worker that was killed may hold a lock that the others wait for."""
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is None:
            return
        iterator._shutdown = True  # its own end has nothing left to do
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        for worker in iterator._workers:
            worker.kill()
        for worker in iterator._workers:
            worker.join(END_SECONDS)
        if self.pin_memory and hasattr(iterator, "_pin_memory_thread"):
            iterator._pin_memory_thread_done_event.set()
            iterator._worker_result_queue.put((None, None))  # wakes the thread, which looks at the event
            iterator._pin_memory_thread.join(END_SECONDS)
        for queue in (*iterator._index_queues, iterator._worker_result_queue):
            queue.cancel_join_thread()
            queue.close()


class _Fault(Exception):
    """Batches no longer come: a worker is dead, or sending failed with `error`."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        super().__init__(error)


def _end_workers(iterator: Any, owner: int) -> None:
    """End the workers of process `owner`; a copy of them in a forked process must not."""
    if os.getpid() == owner:
        iterator._shutdown_workers()
