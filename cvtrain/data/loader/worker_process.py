"""What runs in a data worker: it makes batches, packs them, and sends its failures home as values."""

import contextlib
import functools
import os
import pickle
import sys
import threading
import traceback
import weakref
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawArray
from multiprocessing.util import Finalize, get_temp_dir
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.data.loader.worker_errors import PoolSettings, explain_transport
from cvtrain.data.loader.worker_memory import BatchMemory
from cvtrain.data.loader.worker_signals import ignore_signals

# In the main process, by the number of their pool: a parcel is opened by DataLoader's thread too, which knows no pool.
BATCH_MEMORIES: "weakref.WeakValueDictionary[int, BatchMemory]" = weakref.WeakValueDictionary()


class Parcel:
    """A batch on its way from a worker to the main process.

    It is packed and opened by us and not by the queues of `multiprocessing`: these pack in a thread of their own, where
    a batch that does not fit into shared memory is lost without a word while the main process waits for it for ever.
    Only the images travel in shared memory. Labels and indices go by value: each shared tensor holds a file open as
    long as it lives, and evaluation keeps the labels of all batches.
    """

    def __init__(self, batch: Batch, place: int | None = None, pool: int = -1) -> None:
        """Move `batch` to shared memory, if it is not there: in `place` of the `BatchMemory` of `pool`.

        Raises RuntimeError or OSError if there is too little, or of open files.
        """
        self._content: bytes | None = None
        self._has_arrived = False
        self._place, self._pool = place, pool
        by_value = vars(batch) | {"labels": batch.labels.numpy(), "indices": batch.indices.numpy()}
        self._content = bytes(ForkingPickler.dumps(by_value))

    def open(self) -> Batch:
        """The batch, once. Raises what the transport raises if the worker is gone or too many files are open."""
        content, self._content = self._content, None
        assert content is not None, "a parcel is opened once"
        fields = pickle.loads(content)
        memory = BATCH_MEMORIES.get(self._pool)
        if memory is not None:  # else its workers have ended, and nobody will use the place again
            fields["images"] = memory.follow(fields["images"], self._place)
        arrays = {name: torch.from_numpy(fields[name]) for name in ("labels", "indices")}
        return Batch(**fields | arrays)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory: what DataLoader's own thread calls in the main process."""
        return self.open().pin_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_has_arrived": True}

    def __del__(self) -> None:
        # A batch that nobody wants, of an epoch that was left early: its worker holds the memory until it is fetched.
        if self._has_arrived and self._content is not None:
            try:
                self.open()
            except Exception:  # The worker has ended, and the memory with it.
                return


class WorkerFailure:
    """An exception raised in a worker, in a form that travels.

    torch would rebuild it as `type(error)(text)`, which loses its attributes or fails.
    """

    def __init__(self, error: Exception) -> None:
        self.text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.summary = f"{type(error).__name__}: {error}"
        self.pickled: bytes | None = None
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
            self.pickled = pickled
        except Exception:  # An exception class of a user's own may do anything here.
            return

    def reraise(self) -> None:
        """Raise the exception in this process."""
        error = RuntimeError(self.summary) if self.pickled is None else pickle.loads(self.pickled)
        raise error from _WorkerTraceback(self.text)


class _WorkerTraceback(Exception):
    """The traceback in the worker, shown as the cause of the exception in the main process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Whereabouts:
    """What each worker is at, in memory that the main process can read when the worker is dead.

    Args:
        num_workers: N.
    """

    def __init__(self, num_workers: int) -> None:
        self._batches = RawArray("q", num_workers)  # number + 1, 0 for none
        self._images = RawArray("q", num_workers)  # index + 1, 0 for none

    def at_batch(self, worker: int, number: int) -> None:
        self._images[worker] = 0
        self._batches[worker] = number + 1

    def at_image(self, worker: int, index: int) -> None:
        self._images[worker] = index + 1

    def at_nothing(self, worker: int) -> None:
        self._images[worker] = self._batches[worker] = 0

    def read(self, worker: int) -> tuple[int | None, int | None]:
        """Number of the batch and index of the image that `worker` is at."""
        batch, image = self._batches[worker] - 1, self._images[worker] - 1
        return (None if batch < 0 else batch), (None if image < 0 else image)


class WorkerDataset(Dataset[Parcel | WorkerFailure]):
    """Makes batches in a worker. What goes wrong is a value too, since DataLoader loses what exceptions hold.

    Args:
        dataset: makes a batch from its key.
        whereabouts: where this is written down.
        settings: named in messages.
        memory: where batches are made.
        pool: number of the pool, under which the main process finds `memory`.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        whereabouts: Whereabouts,
        settings: PoolSettings,
        memory: BatchMemory,
        pool: int,
    ) -> None:
        self.dataset = dataset
        self.whereabouts = whereabouts
        self.settings = settings
        self.memory = memory
        self.pool = pool

    def __getitem__(self, key: BatchIndices) -> "Parcel | WorkerFailure":
        info = get_worker_info()
        assert info is not None, "made for workers"
        self.whereabouts.at_batch(info.id, key.number)
        try:
            place, memory = self.memory.take(info.id, self.dataset.num_bytes(key))
        except (RuntimeError, OSError) as error:
            return WorkerFailure(explain_transport(error, self.settings) or error)
        try:
            on_image = functools.partial(self.whereabouts.at_image, info.id)
            batch = self.dataset.make(key, on_image=on_image, memory=memory)
        except Exception as error:
            self.memory.give_back(place)
            return WorkerFailure(error)
        self.whereabouts.at_batch(info.id, key.number)
        try:
            return Parcel(batch, place, self.pool)
        except (RuntimeError, OSError) as error:
            self.memory.give_back(place)
            return WorkerFailure(explain_transport(error, self.settings) or error)
        finally:
            self.whereabouts.at_nothing(info.id)


def init_worker(worker: int) -> None:
    """Set up a worker: one thread, deaf to the signals that are for the main process."""
    ignore_signals()
    sys.excepthook = _print_exception
    # After the sockets in it, which go at priority 0.
    Finalize(None, _remove_orphaned_folder, args=(get_temp_dir(), os.getppid()), exitpriority=-200)
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # read when cv2 is imported later, by the reader or the augmentation
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


def _print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does it, except where the thread that hands out shared memory finds the main process gone."""
    if isinstance(error, (ConnectionError, EOFError)) and threading.current_thread() is not threading.main_thread():
        return
    sys.__excepthook__(kind, error, trace)


def _remove_orphaned_folder(folder: str, main_process: int) -> None:
    """Remove the folder of the workers' sockets, which is the main process's, if that one was killed."""
    if os.getppid() != main_process:
        with contextlib.suppress(OSError):  # the last worker finds it empty
            os.rmdir(folder)  # noqa: PTH106
