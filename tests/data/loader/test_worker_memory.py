"""Shared memory of batches is used again, and never while anything of the batch is still there."""

import numpy as np
import torch

from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.loader.worker_memory import BatchMemory


class Numbered:
    """Image n is of value n all over."""

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return np.full((8, 8, 3), index, np.uint8)

    def name(self, index: int) -> str:
        return f"{index}"


def make_loader() -> BatchLoader:
    resize = build_eval_transform(image_size=8, resize="squash", crop_fraction=1.0)
    dataset = BatchDataset(source=Numbered(120), eval_transform=resize, image_size=8, channels=3, seed=0)
    return BatchLoader(dataset=dataset, plan=EpochSampler(120, 4, 0, False), num_workers=2, prefetch_batches=2)


def is_right(images: torch.Tensor, labels: torch.Tensor) -> bool:
    return bool((images == labels[:, None, None, None]).all())


def test_a_place_is_used_again_when_the_last_view_is_gone() -> None:
    memory = BatchMemory(num_workers=2, num_places=2)
    place, first = memory.take(1, 12)
    assert place == 2 and first.is_synced() and memory.take(0, 12)[0] == 0
    images = memory.follow(first.view(1, 2, 2, 3).permute(0, 3, 1, 2), place)
    view = images[:, 1]
    del images
    other, _ = memory.take(1, 12)
    assert other == 3 and memory.take(1, 12)[0] is None  # none is free
    view.add_(0)
    del view
    again, memory_again = memory.take(1, 6)  # a shorter batch
    assert again == 2 and memory_again.data_ptr() == first.data_ptr() and len(memory_again) == 6
    memory.give_back(other)
    larger, memory_larger = memory.take(1, 24)
    assert larger == 3 and len(memory_larger) == 24


def test_batches_that_are_kept_stay_as_they_were() -> None:
    loader = make_loader()
    kept = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    assert len(kept) == 90 and all(is_right(batch.images, batch.labels) for batch in kept)
    loader.close()
    assert all(is_right(batch.images, batch.labels) for batch in kept)


def test_batches_are_right_while_their_memory_goes_round() -> None:
    loader = make_loader()
    views = []
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            assert is_right(batch.images, batch.labels)
            if batch.number % 5 == 0:
                views.append((batch.images[1:2, :, 2:4], batch.labels[1:2]))
            if epoch == 1 and batch.number == 9:
                break  # what was made ahead is thrown away
        memory = loader._pool._memory
    assert all(is_right(images, labels) for images, labels in views)
    del batch, views
    for _ in loader.epoch(3):  # to the end, so that nothing is on its way
        pass
    del _
    assert not any(memory._taken)
    loader.close()
