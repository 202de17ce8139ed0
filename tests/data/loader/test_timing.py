"""Seconds by stage: they add up to the time of the batch, and are carried home from workers."""

from types import SimpleNamespace

import pytest
from made_images import NoisySource
from made_loaders import make_loader

from cvtrain.data.loader import timing
from cvtrain.data.loader.timing import stage, take_seconds


class StagedSource(NoisySource):
    def read(self, index):
        with stage("read"):
            return super().read(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_carry_their_stages(num_workers):
    loader = make_loader(StagedSource(), num_workers=num_workers)
    for batch in loader.epoch(0):
        assert batch.seconds.keys() == {"read", "decode", "augment", "collate"}
        assert all(seconds > 0 for seconds in batch.seconds.values())
    loader.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test sets `clock.now`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    take_seconds()
    return clock


def test_inner_stage_is_not_counted_for_the_outer_one(clock):
    with stage("collate"):
        with stage("decode"):
            clock.now += 1
            with stage("read"):
                clock.now += 2
        clock.now += 4
    assert take_seconds() == {"read": 2, "decode": 1, "collate": 4}
    assert take_seconds() == {}


def test_failed_stage_is_counted_and_closed(clock):
    with pytest.raises(OSError, match="gone"), stage("read"):
        clock.now += 1
        raise OSError("gone")
    with stage("decode"):
        clock.now += 2
    assert take_seconds() == {"read": 1, "decode": 2}
