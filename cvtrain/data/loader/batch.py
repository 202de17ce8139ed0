"""Batches, each made whole by one call, in a worker process or in the main one, with the same result."""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from cvtrain.data.images.convert import place_image
from cvtrain.data.images.errors import BadImage, BadImageError
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.data.loader.timing import stage, take_seconds
from cvtrain.data.sources.source import ArraySource, ImageSource, uses_global_rng
from cvtrain.runtime.rng import derive_seeds

# (H, W, C) uint8 and the sample's seed -> (C, S, S) uint8, in any memory layout
TrainTransform = Callable[[np.ndarray, int], torch.Tensor]
# (H, W, C) uint8 -> (C, S, S) uint8
EvalTransformFn = Callable[[np.ndarray], torch.Tensor]


@dataclass
class Batch:
    """Images on the host, ready for the device. B is smaller than planned, and may be 0, where images were bad.

    Attributes:
        images: (B, C, S, S) uint8, whose channels are last in memory, as they are in images.
        labels: (B,) int64 class ids.
        indices: (B,) int64 places in the source.
        bad: images of this batch that could not be read.
        epoch, number: which batch of which epoch, 0-based.
        seconds: that making it took, by stage of `timing`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[BadImage] = field(default_factory=list)
    epoch: int = 0
    number: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory, from which copies to a GPU can overlap with computing."""
        pinned = (self.images.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory())
        return replace(self, images=pinned[0], labels=pinned[1], indices=pinned[2])


class BatchDataset(Dataset[Batch]):
    """Makes the batch of a `BatchIndices`. Can be pickled if its source and transforms can.

    Args:
        source: images and labels.
        eval_transform: resizes an image to (C, S, S) uint8.
        train_transform: augments an image with a seed to (C, S, S) uint8; None: `eval_transform` for all.
        image_size: S, in pixels.
        channels: C.
        seed: of the augmentation, with epoch and index.
        num_views: number of augmented versions of each image: epoch e makes those of epoch e mod num_views. None: each
            epoch makes new ones.
    """

    def __init__(
        self,
        *,
        source: ImageSource,
        eval_transform: EvalTransformFn,
        train_transform: TrainTransform | None = None,
        image_size: int,
        channels: int,
        seed: int,
        num_views: int | None = None,
    ) -> None:
        self.source = source
        self.eval_transform = eval_transform
        self.train_transform = train_transform
        self.image_size = image_size
        self.channels = channels
        self.seed = seed
        self.num_views = num_views
        self._seeds_globally = uses_global_rng(source)

    @property
    def is_ready_made(self) -> bool:
        """True if the images lie in memory as the model takes them: a batch is then one indexing."""
        return (
            self.train_transform is None
            and isinstance(self.source, ArraySource)
            and self.source.images.shape[1:] == (self.image_size, self.image_size, self.channels)
        )

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in a batch."""
        return self.image_size * self.image_size * self.channels

    def __getitem__(self, key: BatchIndices) -> Batch:
        return self.make(key)

    def make(self, key: BatchIndices, memory: torch.Tensor | None = None) -> Batch:
        """Make the batch of `key`, in (at least B * image_bytes,) uint8 `memory` if that is given."""
        take_seconds()  # of a batch that failed
        with stage("collate"):
            num_bytes = len(key.indices) * self.image_bytes
            memory = torch.empty(num_bytes, dtype=torch.uint8) if memory is None else memory[:num_bytes]
            places = memory.view(len(key.indices), self.image_size, self.image_size, self.channels)
            batch = self._take(key, places) if self.is_ready_made else self._gather(key, places)
        batch.seconds = take_seconds()
        return batch

    def _gather(self, key: BatchIndices, places: torch.Tensor) -> Batch:
        """Make the batch of `key` image by image, one after the other in `places` (B, S, S, C)."""
        good: list[int] = []
        bad: list[BadImage] = []
        view = key.epoch if self.num_views is None else key.epoch % self.num_views
        # A source that uses the global generators, as a user's own Dataset may, is reproducible by these seeds too.
        with preserved_generators() if self._seeds_globally else contextlib.nullcontext():
            seeds = derive_seeds(self.seed, view, last=key.indices)
            for index, seed in zip(key.indices.tolist(), seeds, strict=True):
                if self._seeds_globally:
                    seed_cpu_generators(seed)
                try:
                    place_image(self._image(index, seed), places[len(good)])
                    good.append(index)
                except BadImageError as error:
                    bad.append(BadImage(index, self.source.name(index), error.cause))
        return self._batch(key, places[: len(good)], np.asarray(good, dtype=np.int64), bad)

    def _image(self, index: int, seed: int) -> torch.Tensor:
        with stage("decode"):
            pixels = self.source.read(index)
        try:
            with stage("augment"):
                if self.train_transform is None:
                    return self.eval_transform(pixels)
                return self.train_transform(pixels, seed)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"while transforming {self.source.name(index)}, {pixels.shape} {pixels.dtype}")
            raise

    def _take(self, key: BatchIndices, places: torch.Tensor) -> Batch:
        """Make the batch of `key` by one indexing."""
        assert isinstance(self.source, ArraySource)
        # By torch, which uses all cores: the rows lie anywhere, so that the time is that of waiting for memory.
        torch.index_select(torch.from_numpy(self.source.images), 0, torch.from_numpy(key.indices), out=places)
        return self._batch(key, places, key.indices, [])

    def _batch(self, key: BatchIndices, places: torch.Tensor, indices: np.ndarray, bad: list[BadImage]) -> Batch:
        labels = torch.from_numpy(np.asarray(self.source.labels[indices], dtype=np.int64))
        images = places.permute(0, 3, 1, 2)  # (B, C, S, S)
        # The copy keeps the batch apart from the order of the whole epoch, of which the key is a view.
        return Batch(images, labels, torch.from_numpy(indices.copy()), bad, key.epoch, key.number)


def seed_cpu_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch on the CPU; 7 us, beside 1 ms to decode a photo."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (the global one is meant)
    torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global generators of the CPU afterwards, so that making a batch changes no other random numbers."""
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)
