"""`BatchLoader`: the batches of an epoch, made by worker processes or in this one, with the same result."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from cvtrain.data.bad_images import BadImage, BadImageError
from cvtrain.data.batches import Batch, BatchDataset
from cvtrain.data.plan import BatchKey, EpochPlan


class _EpochKeys(Sampler[BatchKey]):
    """The keys that a DataLoader iterates over: those of the epoch that was chosen last."""

    def __init__(self, plan: EpochPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start_batch = 0

    def __iter__(self) -> Iterator[BatchKey]:
        return self.plan.batches(self.epoch, self.start_batch)

    def __len__(self) -> int:
        return self.plan.num_batches - self.start_batch


class BatchLoader:
    """The batches of a split, epoch by epoch. Workers start with the first epoch and stay until `close`.

    Args:
        dataset: makes a batch from its key.
        plan: which images make which batch.
        num_workers: processes that make batches; 0: this one.
        prefetch_batches: batches that each worker makes ahead.
        pin_memory: batches come in page-locked memory; needs a CUDA device.
        skip_bad_images: leave out images that cannot be read; otherwise the first one raises.

    Attributes:
        bad_images: what was left out so far, by index.
    """

    def __init__(
        self,
        *,
        dataset: BatchDataset,
        plan: EpochPlan,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
        skip_bad_images: bool = False,
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.num_workers = min(num_workers, plan.num_batches)
        self.prefetch_batches = prefetch_batches
        self.pin_memory = pin_memory
        self.skip_bad_images = skip_bad_images
        self.bad_images: dict[int, BadImage] = {}
        self._keys = _EpochKeys(plan)
        self._workers: DataLoader[Batch] | None = None

    @property
    def batch_size(self) -> int:
        """Images per batch; the last batch of an epoch may have fewer."""
        return self.plan.batch_size

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return self.plan.num_batches

    @property
    def num_images(self) -> int:
        """Images per epoch, those that cannot be read included."""
        return self.plan.num_images

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from number `start_batch` on, equal for any number of workers.

        It may be left early; the next epoch starts clean. Only one epoch can be under way.

        Raises:
            BadImageError: an image cannot be read, unless such images are skipped; or all of them were.
        """
        num_read = 0
        number = start_batch
        for batch in self._batches(epoch, start_batch):
            assert (batch.epoch, batch.number) == (epoch, number), "another epoch of this loader was started"
            number += 1
            num_read += len(batch)
            for bad in batch.bad:
                if not self.skip_bad_images:
                    raise BadImageError(bad.name, bad.cause, bad.index)
                self.bad_images[bad.index] = bad
            yield batch
        if num_read == 0 and start_batch == 0 and self.bad_images:
            first = next(iter(self.bad_images.values()))
            raise BadImageError(first.name, f"{first.cause}; nor could any other image be read", first.index)

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        if self._workers is not None and self._workers._iterator is not None:
            # Left to the garbage collector, the queues may go first: each worker is then waited for 5 s and killed.
            self._workers._iterator._shutdown_workers()  # type: ignore[attr-defined]
        self._workers = None

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        if self.num_workers == 0:
            for key in self.plan.batches(epoch, start_batch):
                batch = self.dataset[key]
                yield batch.pin_memory() if self.pin_memory else batch
            return
        self._keys.epoch, self._keys.start_batch = epoch, start_batch
        if self._workers is None:
            self._workers = self._build_workers()
        with warnings.catch_warnings():
            # More workers than cores were asked for by name: data.num_workers.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            # Workers start here. Later iterations first drain what an unfinished one left in the queues.
            iterator = iter(self._workers)
        yield from iterator

    def _build_workers(self) -> DataLoader[Batch]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return DataLoader(
                self.dataset,
                sampler=self._keys,
                batch_size=None,  # the dataset makes whole batches
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_batches,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                worker_init_fn=_init_worker,
                # Of its own, since DataLoader draws a seed per epoch and would draw it from the global one.
                generator=torch.Generator(),
            )


def _init_worker(worker: int) -> None:
    """One thread per worker, and Ctrl-C is the main process's business: workers end with it, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # read when cv2 is imported later, by the reader or the augmentation
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
