"""`BatchLoader`: the batches of an epoch, made by worker processes or in this one, with the same result."""

import logging
from collections.abc import Iterator

from cvtrain.data.images.errors import BadImage, BadImageError
from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.loader.workers import DataWorkers

log = logging.getLogger(__name__)


class BatchLoader:
    """The batches of a split, epoch by epoch. Workers start with `start` or the first epoch and stay until `close`.

    Args:
        dataset: makes a batch from its indices.
        plan: which images make which batch.
        num_workers: processes that make batches; 0: this one. No more are started than there are batches.
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
        plan: EpochSampler,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
        skip_bad_images: bool = False,
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.num_workers = min(num_workers, plan.num_batches)
        self.pin_memory = pin_memory
        self.skip_bad_images = skip_bad_images
        self.bad_images: dict[int, BadImage] = {}
        self._workers: DataWorkers | None = None
        if self.num_workers > 0:
            self._workers = DataWorkers(
                dataset=dataset,
                plan=plan,
                num_workers=self.num_workers,
                prefetch_batches=prefetch_batches,
                pin_memory=pin_memory,
            )

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
            DataWorkerError: a worker died, or batches can no longer be sent; all workers have ended.
        """
        num_read, num_known = 0, len(self.bad_images)
        number = start_batch
        for batch in self.raw_batches(epoch, start_batch):
            assert (batch.epoch, batch.number) == (epoch, number), "another epoch of this loader was started"
            number += 1
            num_read += len(batch)
            for bad in batch.bad:
                if not self.skip_bad_images:
                    raise BadImageError(bad.name, bad.cause, bad.index)
                self._record(bad)
            yield batch
        assert number >= self.num_batches, "another epoch of this loader was started"
        if len(self.bad_images) > max(num_known, 1):
            log.warning("%d images could not be read so far and were left out", len(self.bad_images))
        # One of several ranks may have had nothing but a few bad images.
        if num_read == 0 and start_batch == 0 and self.bad_images and self.plan.world_size == 1:
            first = next(iter(self.bad_images.values()))
            raise BadImageError(first.name, f"{first.cause}; nor could any other image be read", first.index)

    def start(self) -> None:
        """Start the workers now, while this process is small.

        Workers are forks. Of memory that is there when they start, each page that a step writes afterwards is copied:
        an evaluation's workers that started after the first epoch made the second of ResNet-18 on a CPU 1 s longer.

        Raises:
            DataWorkerError: they cannot be started.
        """
        if self._workers is not None:
            self._workers.start()

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        if self._workers is not None:
            self._workers.close()

    def _record(self, bad: BadImage) -> None:
        if not self.bad_images:  # early, since an epoch may take hours; the others are counted at its end
            log.warning("%s cannot be read and is left out: %s", bad.name, bad.cause)
        self.bad_images[bad.index] = bad

    def raw_batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` with their `bad` images, which are neither raised nor recorded."""
        if self._workers is not None:
            yield from self._workers.epoch(epoch, start_batch)
            return
        for key in self.plan.batches(epoch, start_batch):
            batch = self.dataset[key]
            yield batch.pin_memory() if self.pin_memory else batch
