"""`BatchMemory`: shared memory of batches that the main process is done with, used again by the worker that made them.

The system clears new shared memory page by page when it is first written: as much time as a crop of each image took.
"""

import os
import weakref
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch


class BatchMemory:
    """Places for the batches of some workers. It is made by the main process, and all of them have it.

    A worker takes a place that is free, and with it the memory that it used there before. The main process gives the
    place back when nothing refers to the batch's images any more. Batches that are kept thus keep their memory, and
    more places are taken; without a free one the memory is new, and not used again.

    Args:
        num_workers: processes.
        num_places: for each of them.
    """

    def __init__(self, num_workers: int, num_places: int) -> None:
        self.num_places = num_places
        self._taken = RawArray("B", num_workers * num_places)
        self._memories: dict[int, torch.Tensor] = {}  # of this process

    def take(self, worker: int, num_bytes: int) -> tuple[int | None, torch.Tensor]:
        """In a worker: a place, and (num_bytes,) uint8 that other processes can be given.

        Raises:
            RuntimeError, OSError: there is too little shared memory, or of open files.
        """
        first = worker * self.num_places
        for place in range(first, first + self.num_places):
            if not self._taken[place]:
                memory = self._memories.get(place)
                if memory is None or len(memory) < num_bytes:
                    memory = self._memories[place] = _new_memory(num_bytes)
                self._taken[place] = 1
                return place, memory[:num_bytes]
        return None, _new_memory(num_bytes)

    def give_back(self, place: int | None) -> None:
        """In a worker: nothing was sent in it."""
        if place is not None:
            self._taken[place] = 0

    def follow(self, images: torch.Tensor, place: int | None) -> torch.Tensor:
        """In the main process: the same images; the place is given back when they, and all views of them, are gone."""
        if place is None:
            return images
        array = images.numpy()  # the tensor that is made of it keeps it alive, whoever holds a view of that
        weakref.finalize(array, _free, self._taken, place, os.getpid()).atexit = False
        return torch.from_numpy(array)


def _free(taken: Any, place: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has copies of the objects, and nothing to say
        taken[place] = 0


def _new_memory(num_bytes: int) -> torch.Tensor:
    storage = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(storage)
