"""The number of data workers by `data.num_workers=auto`."""

from typing import NamedTuple

# More workers than this seldom help one device, and each holds batches in shared memory.
MAX_WORKERS = 8
# Fewer images than this are made sooner than workers start.
MIN_IMAGES = 256
# A network on the CPU needs most of the cores for itself: one worker for four of them, and none beside one or two.
_CORES_PER_WORKER_ON_CPU = 4


class WorkerChoice(NamedTuple):
    """The number of workers and the reason in words, for the log."""

    num_workers: int
    reason: str


def choose_num_workers(
    *, is_in_memory: bool, num_images: int, num_batches: int, num_cores: int, num_ranks: int = 1, on_cpu: bool
) -> WorkerChoice:
    """Choose the workers of one loader of one rank.

    Args:
        is_in_memory: a batch is one indexing of an array, on the host or on the device.
        num_images: per epoch, over all ranks.
        num_batches: per epoch.
        num_cores: that the ranks on this machine share.
        num_ranks: on this machine.
        on_cpu: the network computes on the same cores.
    """
    cores = max(1, num_cores // num_ranks)
    words = f"{num_cores} {'core' if num_cores == 1 else 'cores'}, {num_ranks} {'rank' if num_ranks == 1 else 'ranks'}"
    if is_in_memory:
        return WorkerChoice(0, "images are in memory")
    if num_images < MIN_IMAGES:
        return WorkerChoice(0, f"{num_images} images")
    if on_cpu:
        enough = 0 if cores <= 2 else max(1, cores // _CORES_PER_WORKER_ON_CPU)
        return WorkerChoice(min(enough, MAX_WORKERS, num_batches), f"{words}, shared with the network")
    return WorkerChoice(min(cores, MAX_WORKERS, num_batches), words)
