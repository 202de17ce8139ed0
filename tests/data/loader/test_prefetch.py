"""Prefetching to the device: order, what is copied ahead, and errors in their turn."""

import pytest
import torch

from cvtrain.data.loader.batch import Batch
from cvtrain.data.loader.prefetch import batch_to_device, one_ahead, prefetch_to_device


def made_batches(count: int, pin: bool = False):
    for number in range(count):
        images = torch.full((4, 3, 2, 2), number, dtype=torch.uint8)
        batch = Batch(images, torch.full((4,), number), torch.arange(4) + 4 * number, number=number)
        yield batch.pin_memory() if pin else batch


def test_cpu_prefetches_nothing():
    made = []

    def source():
        for batch in made_batches(3):
            made.append(batch)
            yield batch

    for number, batch in enumerate(prefetch_to_device(source(), torch.device("cpu"))):
        assert len(made) == number + 1
        assert batch.images is made[-1].images and batch.indices is made[-1].indices
    assert number == 2


def test_arrived_is_called_before_each_copy():
    events = []

    def source():
        for number, batch in enumerate(made_batches(3)):
            events.append(f"made {number}")
            yield batch

    for number, _ in enumerate(
        prefetch_to_device(source(), torch.device("cpu"), arrived=lambda: events.append("arrived"))
    ):
        events.append(f"used {number}")
    assert events == [f"{what}" for n in range(3) for what in (f"made {n}", "arrived", f"used {n}")]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_yields_the_same_items(count):
    taken = []

    def source():
        for item in range(count):
            taken.append(item)
            yield item

    for given, item in enumerate(one_ahead(source())):
        assert item == given
        assert len(taken) == min(given + 2, count)
    assert taken == list(range(count))


def test_an_error_is_raised_in_its_turn():
    def source():
        yield 0
        yield 1
        raise ValueError("batch 2")

    given = []
    with pytest.raises(ValueError, match="batch 2"):
        for item in one_ahead(source()):
            given.append(item)
    assert given == [0, 1]


def test_leaving_early_closes_the_source():
    ended = []

    def source():
        try:
            yield from range(9)
        finally:
            ended.append(True)

    iterator = one_ahead(source())
    assert next(iterator) == 0
    iterator.close()
    assert ended == [True]


@pytest.mark.gpu
def test_cuda_batches_equal_while_it_computes():
    device = torch.device("cuda:0")
    weights = torch.randn(2048, 2048, device=device)
    received = []
    for batch in prefetch_to_device(made_batches(20, pin=True), device):
        assert batch.images.device == device and batch.labels.device == device and not batch.indices.is_cuda
        for _ in range(20):  # keeps the device busy, so that copies run beside it and memory is given back early
            weights = (weights @ weights).tanh()
        received.append((batch.images.float().sum(), batch.labels.sum(), batch.number))
        del batch
    assert [(int(images), int(labels), number) for images, labels, number in received] == [
        (48 * number, 4 * number, number) for number in range(20)
    ]


@pytest.mark.parametrize(("device", "is_async"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_cuda_copies_are_asynchronous(device, is_async):
    """MPS reads the host's memory when it comes to the copy, and a worker writes its next batch there meanwhile."""
    sent = []

    class Images:
        def to(self, device, *, non_blocking):
            sent.append((device.type, non_blocking))
            return self

    batch = Batch(Images(), Images(), torch.arange(2))  # type: ignore[arg-type]
    batch_to_device(batch, torch.device(device))
    assert sent == [(device, is_async)] * 2
