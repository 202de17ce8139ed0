"""`FeatureLoader`: batches of features, which a network's head takes as the network takes images."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from cvtrain.data.build import Batch, BatchLoader
from cvtrain.models.backbone import FeatureSpec
from cvtrain.training.feature_table import FeatureTable

# A batch of uint8 images on the host to its features (B, ...).
Compute = Callable[[torch.Tensor], torch.Tensor]


class FeatureLoader:
    """Stands in for a `BatchLoader`: the same batches, of features instead of images.

    Epoch e shows view e mod `num_views`. The features of view v are those of the images in epoch v of `images`,
    computed in that epoch's batches: while that epoch trains, or beforehand in a run that goes on later. So they are
    the same to the bit before and after a restart.

    Args:
        images: the loader of the images; its epoch v shows every image that a later epoch can ask for.
        compute: the frozen backbone.
        form: of the features of an image.
        num_views: how many versions of each image there are.
        device: where the features are kept.
        should_stop: asked while features are computed that no epoch shows yet; then the epoch ends at once.

    Attributes:
        bad_images: what could not be read so far, by index; shared with `images`.
    """

    def __init__(
        self,
        *,
        images: BatchLoader,
        compute: Compute,
        form: FeatureSpec,
        num_views: int = 1,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.images = images
        self.compute = compute
        self.form = form
        self.should_stop = should_stop
        self.bad_images = images.bad_images
        source = images.dataset.source
        self._labels = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)).to(device)
        self._tables = [
            FeatureTable(form, num_rows=images.num_images, num_images=len(source), device=device)
            for _ in range(num_views)
        ]

    @property
    def batch_size(self) -> int:
        return self.images.batch_size

    @property
    def num_batches(self) -> int:
        return self.images.num_batches

    @property
    def num_images(self) -> int:
        return self.images.num_images

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from number `start_batch` on, with features for images.

        Raises:
            BadImageError, DataWorkerError: as `BatchLoader.epoch`, while features are computed.
        """
        view = epoch % len(self._tables)
        table = self._tables[view]
        if not table.is_complete:
            filled = self._fill(table, view)
            if (epoch, start_batch) == (view, 0):
                yield from filled
                return
            for _ in filled:
                if self.should_stop():
                    return
        for key in self.images.plan.batches(epoch, start_batch):
            there = table.has(key.indices)
            indices = key.indices[there]
            bad = [self.bad_images[index] for index in key.indices[~there].tolist()]
            places = torch.from_numpy(indices)
            labels = self._labels.index_select(0, places.to(self._labels.device))
            yield Batch(table.take(indices), labels, places, bad, epoch, key.number)

    def start(self) -> None:
        """Start the workers of `images`, if features are to be computed."""
        if not all(table.is_complete for table in self._tables):
            self.images.start()

    def close(self) -> None:
        """End the workers of `images`."""
        self.images.close()

    def _fill(self, table: FeatureTable, view: int) -> Iterator[Batch]:
        """Compute the features of `view`, batch by batch."""
        table.clear()
        for batch in self.images.epoch(view):
            features = torch.empty((0, *self.form.shape), dtype=self.form.dtype)
            if len(batch):
                features = self.compute(batch.images)
                table.put(batch.indices.numpy(), features)
            yield replace(batch, images=features, labels=batch.labels.to(features.device))
        table.is_complete = True
        if all(table.is_complete for table in self._tables):
            self.images.close()
