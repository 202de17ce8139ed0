"""Estimates beside a simulated run: a network of threads and workers that share cores fairly, with and without work."""

import dataclasses
import math
from dataclasses import dataclass

import pytest

from cvtrain.report.estimate import Contention, measure_contention, seconds_with_cache, seconds_with_workers
from cvtrain.training.timer import StageTimes

STEPS, PREFETCH = 200, 2


@dataclass(frozen=True)
class Machine:
    """A run: core seconds of a step by each of its threads, and of a batch; cores; threads of other programs."""

    step: float
    decode: float
    augment: float
    num_workers: int
    num_cores: int
    num_threads: int
    others: int = 0
    disk: float = 0.0  # seconds that a worker waits for a file of each batch

    def run(self) -> StageTimes:
        """Times of `STEPS` steps, from one end of work to the next; all that run meanwhile get equal shares.

        Worker w makes batches w, w + N, ..., up to `PREFETCH` of them ahead of the loop, as in torch's DataLoader.
        """
        batch = self.decode + self.augment
        at_disk = [self.disk] * self.num_workers
        left = [batch] * self.num_workers
        made = [0] * self.num_workers
        done, now, wait, step_left, network_cpu = 0, 0.0, 0.0, 0.0, 0.0
        started, made_seconds, cpu, disk_seconds = 0, 0.0, 0.0, 0.0
        while done < STEPS:
            if step_left <= 0 and made[started % self.num_workers] > 0:
                made[started % self.num_workers] -= 1
                step_left, started = self.step, started + 1
            busy = [w for w in range(self.num_workers) if made[w] < PREFETCH]
            reading = [w for w in busy if at_disk[w] > 0]
            working = [w for w in busy if at_disk[w] <= 0]
            threads = self.num_threads if step_left > 0 else 0
            rate = min(1.0, self.num_cores / max(1, threads + len(working) + self.others))
            ends = [at_disk[w] for w in reading] + [left[w] / rate for w in working]
            passed = min(ends + [step_left / rate] * (step_left > 0))
            now += passed
            made_seconds += passed * len(working)
            cpu += passed * rate * len(working)
            disk_seconds += passed * len(reading)
            for w in reading:
                at_disk[w] = 0.0 if at_disk[w] - passed < 1e-9 else at_disk[w] - passed
            for w in working:
                left[w] -= passed * rate
                if left[w] < 1e-9:
                    left[w], at_disk[w], made[w] = batch, self.disk, made[w] + 1
            if step_left > 0:
                network_cpu += passed * rate * threads
                step_left -= passed * rate
                if step_left < 1e-9:
                    step_left, done = 0.0, done + 1
            else:
                wait += passed
        share = self.decode / batch
        return StageTimes(
            loop={"wait": wait, "forward_backward": now - wait},
            data={"read": disk_seconds, "decode": made_seconds * share, "augment": made_seconds * (1 - share)},
            data_cpu={"read": 0.0, "decode": cpu * share, "augment": cpu * (1 - share)},
            loop_cpu={"wait": 0.0, "forward_backward": network_cpu},
            num_epochs=1,
        )


CASES = {
    "cores to spare, all hidden": Machine(1.0, 0.5, 0.3, 1, 8, 4),
    "cores to spare, starved": Machine(0.3, 3.0, 0.3, 2, 8, 4),
    "two workers and two threads on two cores": Machine(1.0, 0.8, 0.2, 2, 2, 2),
    "little decoding on two cores": Machine(1.0, 0.2, 0.1, 2, 2, 2),
    "much decoding on two cores": Machine(0.3, 2.0, 0.3, 2, 2, 2),
    "one slow worker, starved": Machine(0.3, 2.0, 0.2, 1, 2, 2),
    "one worker beside one thread": Machine(1.0, 0.5, 0.2, 1, 2, 1),
    "two workers beside one thread on two cores": Machine(1.0, 1.2, 0.2, 2, 2, 1),
    "one core": Machine(1.0, 0.5, 0.2, 1, 1, 1),
    "eight workers and eight threads": Machine(1.0, 5.0, 1.0, 8, 8, 8),
    "few threads on many cores": Machine(1.0, 5.0, 1.0, 6, 8, 2),
    "augmenting stays": Machine(0.5, 0.5, 1.0, 2, 2, 2),
    "augmenting stays and starves": Machine(0.2, 0.5, 1.5, 2, 4, 2),
    "other programs too": Machine(1.0, 0.8, 0.2, 2, 2, 2, others=3),
    "many other programs": Machine(1.0, 0.8, 0.2, 1, 2, 1, others=8),
    "a slow disk": Machine(0.5, 0.3, 0.2, 2, 4, 2, disk=1.5),
    "a slow disk and few cores": Machine(0.5, 0.3, 0.2, 2, 2, 2, disk=0.5),
}


@pytest.mark.parametrize("machine", CASES.values(), ids=CASES.keys())
def test_a_cache_brings_what_was_promised(machine):
    times = machine.run()
    cached = dataclasses.replace(machine, decode=0.0, disk=0.0).run()
    promised = times.total / seconds_with_cache(
        times, num_workers=machine.num_workers, num_cores=machine.num_cores, on_cpu=True
    )
    brought = times.total / cached.total
    assert promised == pytest.approx(brought, rel=0.15 if machine.disk else 0.07)


def test_a_worker_that_finds_a_core_free_leaves_the_network_alone():
    machine = Machine(1.0, 0.5, 0.2, 1, 8, 4)
    contention = measure_contention(machine.run(), num_workers=1, num_cores=8)
    assert contention.slowdown == pytest.approx(1)
    assert contention.rate(0) == pytest.approx(1)
    assert contention.rate(contention.active) == pytest.approx(1)


def test_contention_is_what_fair_shares_give():
    # 2 threads and 2 workers that never rest on 2 cores: half a core each, and a whole one without workers.
    times = StageTimes(
        loop={"wait": 0.0, "forward_backward": 100.0},
        data={"decode": 200.0},
        data_cpu={"decode": 100.0},
        loop_cpu={"forward_backward": 100.0},
    )
    contention = measure_contention(times, num_workers=2, num_cores=2)
    assert contention == Contention(active=2.0, slowdown=2.0, alone=1.0)
    assert contention.rate(0.0) == 1.0
    assert contention.rate(2.0) == 0.5
    assert contention.rate(1.0) == 1 / 1.5
    assert contention.rate(0.5) == pytest.approx(0.5 + 0.5 / 1.5)
    # All of decoding gone, the network has twice the time.
    assert seconds_with_cache(times, num_workers=2, num_cores=2, on_cpu=True) == pytest.approx(50.0)
    assert seconds_with_cache(times, num_workers=2, num_cores=2, on_cpu=False) == 100.0


def test_other_programs_stay():
    # The same with half of each core's time used by others: of 4 threads and 4 of others on 2 cores, 4 + 2 remain.
    times = StageTimes(
        loop={"wait": 0.0, "forward_backward": 100.0},
        data={"decode": 200.0},
        data_cpu={"decode": 50.0},
        loop_cpu={"forward_backward": 50.0},
    )
    contention = measure_contention(times, num_workers=2, num_cores=2)
    assert (contention.slowdown, contention.alone) == (4.0, 3.0)
    assert seconds_with_cache(times, num_workers=2, num_cores=2, on_cpu=True) == pytest.approx(75.0)


def test_without_workers_decoding_is_waited_for():
    times = StageTimes(
        loop={"wait": 40.0, "forward_backward": 60.0}, data={"read": 5.0, "decode": 25.0, "augment": 9.0}
    )
    assert seconds_with_cache(times, num_workers=0, num_cores=2, on_cpu=True) == 70.0


def test_workers_beside_a_network_that_leaves_cores_free():
    times = StageTimes(
        loop={"wait": 40.0, "forward_backward": 60.0, "evaluation": 10.0},
        data={"decode": 40.0},
        data_cpu={"decode": 40.0},
        loop_cpu={"wait": 40.0, "forward_backward": 120.0, "evaluation": 20.0},
    )
    # Two of the eight cores compute; on two cores, 160 core seconds need 80 seconds.
    assert seconds_with_workers(times, 8, num_cores=8, on_cpu=True) == 70.0
    assert seconds_with_workers(times, 2, num_cores=2, on_cpu=True) == 90.0
    assert seconds_with_workers(times, 2, num_cores=2, on_cpu=False) == 70.0


def test_nothing_measured_promises_nothing():
    assert seconds_with_cache(StageTimes(), num_workers=2, num_cores=2, on_cpu=True) == 0.0
    assert math.isclose(
        seconds_with_cache(StageTimes(loop={"wait": 1.0}), num_workers=2, num_cores=2, on_cpu=True), 0.0
    )
