"""Batches on their way to the device: the copy of the next one runs beside the computation on this one."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from cvtrain.data.loader.batch import Batch

T = TypeVar("T")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with images and labels on `device`; `indices` stay on the host, where names are looked up."""
    return replace(batch, images=send(batch.images, device), labels=send(batch.labels, device))


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. Only CUDA's copies may go on when this returns: CUDA keeps pinned memory until they end.

    MPS would read memory that has been given to the next batch by then (pytorch/pytorch#189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def prefetch_to_device(
    batches: Iterable[Batch], device: torch.device, *, arrived: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """The same batches in the same order, with images and labels on `device`.

    `arrived` is called for each when it is at hand, and its copy to the device has yet to be made or waited for.

    On CUDA one batch more than was asked for has been sent already, on a stream of its own. Who counts batches counts
    those that it was given: the one ahead belongs to nobody yet, and is dropped if the iteration ends early. What goes
    wrong while it is made is raised in its turn, after the batch before it was given. Elsewhere nothing is made ahead.
    """
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        sent = (_send(batch, device, stream) for batch in batches)
        for pair in one_ahead(sent):
            arrived()
            yield _receive(*pair, device)
    else:
        for batch in batches:
            arrived()
            yield to_device(batch, device)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; when one is given, the next has been taken from `items` already, or failed to come.

    Why it failed is raised when its turn comes.
    """
    source = iter(items)
    waiting = list(itertools.islice(source, 1))
    while waiting:
        failure: Exception | None = None
        try:
            waiting += itertools.islice(source, 1)
        except Exception as error:
            failure = error
        yield waiting.pop(0)
        if failure is not None:
            raise failure


def _send(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event | None]:
    """Start the copy of a batch. It overlaps with computing only if the batch is in pinned memory."""
    if batch.images.device == device:  # from a `DeviceLoader`, made on the stream that computes
        return batch, None
    with torch.cuda.stream(stream):
        return to_device(batch, device), stream.record_event()


def _receive(batch: Batch, copied: torch.cuda.Event | None, device: torch.device) -> Batch:
    """The batch for the stream that computes, which waits for the copy; the host does not."""
    if copied is None:
        return batch
    compute = torch.cuda.current_stream(device)
    compute.wait_event(copied)
    # The memory belongs to the copying stream: without this it could be given to the next copy while still in use.
    batch.images.record_stream(compute)
    batch.labels.record_stream(compute)
    return batch
