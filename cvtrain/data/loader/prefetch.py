"""Prefetch batches to the device: the copy of the next one runs beside the computation on this one."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch

from cvtrain.data.loader.batch import Batch

T = TypeVar("T")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy `tensor` to `device`, on CUDA without waiting for it: CUDA keeps pinned memory until its copies end.

    MPS would read memory that has been given to the next batch by then (pytorch/pytorch#189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy images and labels to `device`; `indices` stay on the host, where names are looked up."""
    return replace(batch, images=to_device(batch.images, device), labels=to_device(batch.labels, device))


def prefetch_to_device(
    batches: Iterable[Batch], device: torch.device, *, arrived: Callable[[], None] = lambda: None
) -> Iterator[Batch]:
    """Yield the same batches in the same order, with images and labels on `device`.

    On CUDA the copy of the next batch has been started already, on a stream of its own. That batch is dropped if the
    iteration ends early, and an error in it is raised in its turn. Other devices prefetch nothing.

    Args:
        arrived: called for each batch when it is on the host, before its copy to the device is made or waited for.
    """
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        copies = (_start_copy(batch, device, stream) for batch in batches)
        for pair in one_ahead(copies):
            arrived()
            yield _wait_for_copy(*pair, device)
    else:
        for batch in batches:
            arrived()
            yield batch_to_device(batch, device)


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items, each after the next was taken from `items`, whose error is raised in its turn."""
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


def _start_copy(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event | None]:
    """Start the copy of a batch. It overlaps with computing only if the batch is in pinned memory."""
    if batch.images.device == device:  # from a `DeviceLoader`, made on the stream that computes
        return batch, None
    with torch.cuda.stream(stream):
        return batch_to_device(batch, device), stream.record_event()


def _wait_for_copy(batch: Batch, copied: torch.cuda.Event | None, device: torch.device) -> Batch:
    """Let the stream that computes wait for the copy; the host does not."""
    if copied is None:
        return batch
    compute = torch.cuda.current_stream(device)
    compute.wait_event(copied)
    # The memory belongs to the copying stream: without this it could be given to the next copy while still in use.
    batch.images.record_stream(compute)
    batch.labels.record_stream(compute)
    return batch
