"""How many workers `data.num_workers=auto` takes, by a clock of the test's own, and that it changes no batch."""

import logging

import numpy as np
import pytest
import torch
from made_images import NoisySource

from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.auto_workers import AutoWorkers
from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler


class Machine:
    """A machine on which a batch takes `made` seconds to make, and a step `step`.

    With n workers a batch is there after `made / n` at best, and what they take from the step makes it `slowed` times
    as long.
    """

    def __init__(self, *, made: float, step: float, slowed: float = 1.0) -> None:
        self.made, self.step, self.slowed = made, step, slowed
        self.time = 0.0

    def clock(self) -> float:
        return self.time

    def batches(self, num_workers: int, count: int):
        for number in range(count):
            if num_workers == 0:
                self.time += self.made
            elif number == 0:
                self.time += self.made  # nothing is there yet
            else:
                self.time += max(0.0, self.made / num_workers - self.step * self.slowed)
            nothing = torch.empty(0)
            yield Batch(nothing, nothing, nothing, seconds={"decode": self.made})

    def run_epoch(self, workers: AutoWorkers, num_batches: int) -> float:
        """Seconds of an epoch, step and all."""
        started, done = self.time, 0
        workers.begin_epoch()
        while done < num_batches:
            current = workers.current
            for _ in workers.timed(self.batches(current, num_batches - done)):
                done += 1
                self.time += self.step * (self.slowed if current else 1.0)
        return self.time - started


def decide(machine: Machine, most: int = 8, num_batches: int = 60) -> AutoWorkers:
    workers = AutoWorkers(most, purpose="training", clock=machine.clock)
    machine.run_epoch(workers, num_batches)
    return workers


@pytest.mark.parametrize(
    ("made", "step", "slowed", "chosen"),
    [
        (0.01, 0.70, 1.0, 0),  # a warm cache under a slow step: nothing to win
        (0.30, 0.70, 1.0, 1),  # one worker keeps up
        (0.50, 0.10, 1.0, 7),  # 5 would just keep up
        (0.90, 0.001, 1.0, 8),  # as many as there may be
        (0.10, 0.70, 1.3, 0),  # two cores: workers take more from the step than they bring
        (0.70, 0.70, 1.3, 2),  # here they do not
        (20.0, 1.00, 1.0, 8),  # huge images
    ],
)
def test_workers_are_taken_where_they_help(made: float, step: float, slowed: float, chosen: int) -> None:
    machine = Machine(made=made, step=step, slowed=slowed)
    assert decide(machine).current == chosen


@pytest.mark.parametrize("made", [0.001, 0.05, 0.2, 0.7, 3.0])
@pytest.mark.parametrize("slowed", [1.0, 1.2, 2.0])
def test_never_slower_than_none_after_the_first_seconds(made: float, slowed: float) -> None:
    machine = Machine(made=made, step=0.5, slowed=slowed)
    workers = decide(machine, most=2)
    assert machine.run_epoch(workers, 50) <= 50 * (made + 0.5) * 1.0001


def test_few_batches_are_looked_at_where_they_take_long() -> None:
    machine = Machine(made=10.0, step=1.0)
    assert decide(machine, num_batches=2).current > 0


def test_workers_are_not_started_before_batches_have_cost_as_much() -> None:
    """A tenth of the time, in an evaluation of 50 batches: 0.5 s in each, and starting workers takes about 1 s."""
    machine = Machine(made=0.01, step=0.09)
    workers = AutoWorkers(2, purpose="evaluation", clock=machine.clock)
    for _ in range(2):
        machine.run_epoch(workers, 50)
        assert workers.current == 0 and workers._phase.name == "alone"
    machine.run_epoch(workers, 50)
    assert workers.current == 1


def test_short_epochs_decide_together() -> None:
    machine = Machine(made=0.01, step=0.7)
    workers = AutoWorkers(2, purpose="evaluation", clock=machine.clock)
    for _ in range(3):
        machine.run_epoch(workers, 2)
    assert workers._phase.name == "settled" and workers.current == 0


def test_a_full_cache_is_a_reason_to_look_again(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(made=0.6, step=0.4)
    with caplog.at_level(logging.INFO):
        workers = decide(machine)
        assert workers.current == 2
        machine.made = 0.008
        machine.run_epoch(workers, 20)  # the epoch in which this is seen
        machine.run_epoch(workers, 20)
        assert workers.current == 0
        for _ in range(3):
            machine.run_epoch(workers, 20)
    assert [record.getMessage() for record in caplog.records] == [
        "data workers for training: 2: a batch comes every 400 ms, without workers every 1 s",
        "data workers for training: none: a batch is made in 8 ms, beside 400 ms that it is used for",
    ]


def test_what_was_found_not_to_help_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(made=0.1, step=0.7, slowed=1.3)
    with caplog.at_level(logging.INFO):
        workers = decide(machine)
        machine.made = 0.2
        for _ in range(3):
            machine.run_epoch(workers, 20)
    assert workers.current == 0
    assert [record.getMessage() for record in caplog.records] == [
        "data workers for training: none: with 1, a batch comes every 910 ms, without workers every 800 ms",
    ]


@pytest.mark.parametrize("start_batch", [0, 3])
def test_batches_are_those_of_any_number_of_workers(start_batch: int) -> None:
    resize = build_eval_transform(image_size=6, resize="squash", crop_fraction=1.0)

    def batches(epoch: int, **options: object) -> list[Batch]:
        dataset = BatchDataset(source=NoisySource(count=48, draws=True), eval_transform=resize, image_size=6,
                               channels=3, seed=1)  # fmt: skip
        loader = BatchLoader(dataset=dataset, plan=EpochSampler(48, 2, 1, True), **options)  # type: ignore[arg-type]
        found = [batch for number in range(epoch) for batch in loader.epoch(number, start_batch)]
        loader.close()
        return found

    expected = batches(2)
    found = batches(2, num_workers=2, measure_workers=True)  # no step: workers are tried after the first few batches
    assert [batch.number for batch in found] == [batch.number for batch in expected]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images) and np.array_equal(a.indices, b.indices)
