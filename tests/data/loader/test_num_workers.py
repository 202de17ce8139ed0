"""The rule of data.num_workers=auto, case by case."""

import pytest

from cvtrain.data.loader.num_workers import choose_num_workers

PHOTOS = {"is_in_memory": False, "num_images": 10_000, "num_batches": 100, "num_cores": 16, "num_ranks": 1}


@pytest.mark.parametrize(
    ("changes", "num_workers", "reason"),
    [
        # a GPU: one worker for each core of the rank, 8 at most
        ({"on_cpu": False}, 8, "16 cores, 1 rank"),
        ({"on_cpu": False, "num_cores": 4}, 4, "4 cores, 1 rank"),
        ({"on_cpu": False, "num_ranks": 4}, 4, "16 cores, 4 ranks"),
        ({"on_cpu": False, "num_cores": 2, "num_ranks": 4}, 1, "2 cores, 4 ranks"),
        ({"on_cpu": False, "num_batches": 3}, 3, "16 cores, 1 rank"),
        # a network on the same cores
        ({"on_cpu": True}, 4, "16 cores, 1 rank, shared with the network"),
        ({"on_cpu": True, "num_cores": 64}, 8, "64 cores, 1 rank, shared with the network"),
        ({"on_cpu": True, "num_cores": 3}, 1, "3 cores, 1 rank, shared with the network"),
        ({"on_cpu": True, "num_cores": 2}, 0, "2 cores, 1 rank, shared with the network"),
        ({"on_cpu": True, "num_cores": 1}, 0, "1 core, 1 rank, shared with the network"),
        ({"on_cpu": True, "num_ranks": 2}, 2, "16 cores, 2 ranks, shared with the network"),
        # little to decode
        ({"on_cpu": False, "is_in_memory": True}, 0, "images are in memory"),
        ({"on_cpu": False, "num_images": 255, "num_batches": 8}, 0, "255 images"),
        ({"on_cpu": False, "num_images": 256, "num_batches": 8}, 8, "16 cores, 1 rank"),
        ({"on_cpu": False, "num_images": 0, "num_batches": 0}, 0, "0 images"),
    ],
)
def test_rule(changes, num_workers, reason):
    assert choose_num_workers(**{**PHOTOS, **changes}) == (num_workers, reason)
