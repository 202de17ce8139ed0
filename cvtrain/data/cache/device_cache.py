"""Whole splits in memory of the device, where a batch is one indexing: no worker, no copy, no wait."""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import DeviceCache
from cvtrain.data.cache.budget import free_memory
from cvtrain.data.images.errors import BadImage
from cvtrain.data.loader.batch import Batch
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.prefetch import to_device
from cvtrain.data.loader.sampler import EpochSampler

log = logging.getLogger(__name__)

# Share of the device's free memory that `auto` may take; the rest is for the network and what it computes.
AUTO_SHARE = 0.25


class DeviceLoader(BatchLoader):
    """The batches of `plan` out of one uint8 tensor on the device, equal to the bit to those of a `BatchLoader`.

    The tensor is filled at the first batch. A split with per-image augmentation cannot be cached so,
    since its images differ from epoch to epoch.

    Args:
        filler: shows each image of the dataset once; its workers, if it has any, end when the tensor is full.
        plan: which images make which batch.
        device: that holds the images.
        split: name of the split, for the log.
    """

    def __init__(self, *, filler: BatchLoader, plan: EpochSampler, device: torch.device, split: str) -> None:
        assert can_be_resident(filler, plan)
        super().__init__(dataset=filler.dataset, plan=plan, skip_bad_images=filler.skip_bad_images)
        self.filler = filler
        self.bad_images = filler.bad_images  # one dictionary, so that each is logged once
        self.device = device
        self.split = split
        self._filled: tuple[torch.Tensor, torch.Tensor] | None = None

    def start(self) -> None:
        """Start the workers that fill the tensor, unless it is full."""
        if self._filled is None:
            self.filler.start()

    def close(self) -> None:
        """End the workers that fill the tensor, if they still run."""
        self.filler.close()

    def raw_batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        if self._filled is None:
            self._filled = self._fill()
        images, labels = self._filled
        for key in self.plan.batches(epoch, start_batch):
            indices, bad = self._readable(key.indices)
            # Up to 64 KiB, such as 8,192 indices, CUDA copies without making the host wait.
            places = to_device(torch.from_numpy(indices), self.device)
            taken = images.index_select(0, places), labels.index_select(0, places)
            yield Batch(*taken, torch.from_numpy(indices), bad, key.epoch, key.number)

    def _readable(self, indices: np.ndarray) -> tuple[np.ndarray, list[BadImage]]:
        """A copy of the indices of images that were read, and the bad images among the others."""
        bad = [self.bad_images[index] for index in indices.tolist() if index in self.bad_images]
        if not bad:
            return indices.copy(), bad
        return indices[~np.isin(indices, [image.index for image in bad])], bad

    # Normal tensors, even if the first batch is for evaluation, which runs in inference mode.
    @torch.inference_mode(False)
    def _fill(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, S, S) uint8 images and (N,) int64 labels of the whole split; images that are bad are left black."""
        dataset = self.dataset
        size = f"{len(dataset.source)} images, {resident_bytes(self.filler) / 2**30:.2f} GiB"
        log.info("device cache: copying %s (%s) to %s", self.split, size, self.device)
        shape = (len(dataset.source), dataset.channels, dataset.image_size, dataset.image_size)
        images = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.bad_images.clear()  # of a resumed run: each is tried again
        for batch in self.filler.epoch(0):
            images.index_copy_(0, batch.indices.to(self.device), batch.images.to(self.device))
        self.filler.close()
        labels = torch.from_numpy(np.asarray(dataset.source.labels, dtype=np.int64)).to(self.device)
        return images, labels


def can_be_resident(loader: BatchLoader, plan: EpochSampler) -> bool:
    """True if the images are the same in each epoch, and an epoch shows all of them."""
    dataset = loader.dataset
    is_one_view = dataset.train_transform is None and dataset.num_views in (None, 1)
    return is_one_view and plan.num_images + plan.num_left_out == len(dataset.source)


def resident_bytes(loader: BatchLoader) -> int:
    """Bytes of the split on a device."""
    dataset = loader.dataset
    return len(dataset.source) * (dataset.channels * dataset.image_size**2 + 8)


def fits_on_device(wanted: DeviceCache, num_bytes: int, device: torch.device) -> bool:
    """True if splits of `num_bytes` are to be cached on `device` by `data.device_cache`.

    Raises:
        ConfigError: `always` is set, and there is not enough memory.
    """
    if wanted is DeviceCache.never or num_bytes == 0:
        return False
    if wanted is DeviceCache.auto and device.type != "cuda":
        return False
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if wanted is DeviceCache.auto:
        return num_bytes <= AUTO_SHARE * free
    if num_bytes > free:
        raise ConfigError(
            key="data.device_cache",
            value=wanted.value,
            rule=f"the images come to {num_bytes / 2**30:.2f} GiB, and {device} has {free / 2**30:.2f} GiB free",
            remedy="use data.device_cache=auto, or a smaller data.image_size",
        )
    return True
