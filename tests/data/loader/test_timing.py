"""Seconds per stage: they add up to the time of the batch, and come home from workers."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader import timing as stage_times
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.loader.timing import stage, take_seconds

READ, DECODE, AUGMENT = 0.004, 0.006, 0.003


class SlowSource:
    """Images of one colour that take long to read and longer to decode."""

    labels = np.zeros(4, dtype=np.int64)

    def __len__(self) -> int:
        return 4

    def name(self, index: int) -> str:
        return f"slow[{index}]"

    def read(self, index: int) -> np.ndarray:
        with stage("read"):
            time.sleep(READ)
        time.sleep(DECODE)
        return np.full((8, 8, 3), index, dtype=np.uint8)


def augment(pixels, seed):
    time.sleep(AUGMENT)
    return build_eval_transform(image_size=8, resize="squash", crop_fraction=1.0)(pixels)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_stage_is_counted_where_it_is_done(num_workers):
    dataset = BatchDataset(
        source=SlowSource(),
        eval_transform=augment,
        train_transform=augment,
        image_size=8,
        channels=3,
        seed=0,
    )
    loader = BatchLoader(dataset=dataset, plan=EpochSampler(4, 2, 0, False), num_workers=num_workers)
    try:
        batches = list(loader.epoch(0))
    finally:
        loader.close()
    for batch in batches:
        assert batch.seconds.keys() == {"read", "decode", "augment", "collate"}
        for name, seconds in (("read", 2 * READ), ("decode", 2 * DECODE), ("augment", 2 * AUGMENT)):
            assert batch.seconds[name] >= seconds, name
        # Core seconds come home too: without them a network on the same cores would seem to be left alone.
        assert batch.cpu_seconds.keys() == batch.seconds.keys()
        assert 0 < sum(batch.cpu_seconds.values()) < sum(batch.seconds.values())


def test_a_stage_within_a_stage_counts_for_itself():
    take_seconds()
    began = time.perf_counter()
    with stage("collate"):
        with stage("decode"):
            time.sleep(0.01)
            with stage("read"):
                time.sleep(0.02)
        time.sleep(0.005)
    elapsed = time.perf_counter() - began
    seconds, cpu_seconds = take_seconds()
    # Up to a moment in which others had the core; a stage counted twice would be 0.02 s too much.
    assert sum(seconds.values()) == pytest.approx(elapsed, abs=0.01)
    assert sum(cpu_seconds.values()) < 0.01  # sleeping takes no core
    assert seconds["read"] >= 0.02
    assert seconds["decode"] >= 0.01
    assert take_seconds() == ({}, {})


def test_a_stage_that_fails_is_counted_and_closed():
    with pytest.raises(OSError, match="gone"), stage("read"):
        raise OSError("gone")
    assert take_seconds()[0].keys() == {"read"}
    with stage("decode"):
        pass
    assert take_seconds()[0]["decode"] < 0.01


def test_core_seconds_of_a_stage_are_its_own():
    take_seconds()
    with stage("decode"):
        time.sleep(0.01)
        with stage("read"):
            spin(0.03)
    seconds, cpu_seconds = take_seconds()
    assert cpu_seconds["read"] == pytest.approx(0.03, abs=0.015)
    assert seconds["read"] >= cpu_seconds["read"] - 1e-3  # two clocks
    assert cpu_seconds["decode"] < 0.015  # the spinning within is not its own
    assert seconds["decode"] >= 0.01


def test_a_core_that_is_lost_when_its_clock_is_read_counts_for_the_stage_that_used_it(monkeypatch):
    """A call of the system is where another process gets the core: the stage around had to answer for it."""
    now = itertools.count()
    times = {"perf": 0.0}

    def core_clock():
        times["perf"] += 1.0  # meanwhile somebody else has the core
        return float(next(now)) * 1e-6

    monkeypatch.setattr(
        stage_times, "time", SimpleNamespace(thread_time=core_clock, perf_counter=lambda: times["perf"])
    )
    take_seconds()
    with stage("collate"), stage("decode"):
        pass
    seconds, _ = take_seconds()
    assert seconds == {"decode": 2.0, "collate": 2.0}


def spin(seconds):
    """Take a core for `seconds`."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass
