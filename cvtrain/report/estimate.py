"""How long a measured stretch of training would have taken with less work on the data, or with others to do it.

Of a stretch is known what the loop spent its seconds on, what making the batches took in seconds and in core seconds,
and how many processes did it on how many cores. Without a part of that work it would take as long as the larger of two
things, each of which bounds it on its own: what the loop computes, and what the workers need.

- Without workers the two follow each other: what is saved falls away from the waiting.
- A device of its own computes as long as before. Of N workers each has an N-th of the work that is left; what of that
  exceeds the rest of the loop is waited for.
- Where the network computes on the cores, workers slow it down as well. By how much, their own clocks say: work that
  took S seconds for each core second waited for a core, and so did the network's threads meanwhile. S is 1 where cores
  are to spare, and 2 where two workers and two threads share two cores. With fewer workers at work, S falls to what the
  network has alone: 1, or more if other programs had the cores that neither it nor the workers got.
"""

from dataclasses import dataclass

from cvtrain.training.timer import StageTimes

# What decoded images make needless. Taking one out of a cache is counted as nothing.
_CACHED = ("read", "decode", "cache")
# Reading waits for a disk too: what it took says nothing about the cores.
_DISK = "read"
_ROUNDS = 10


def seconds_with_cache(times: StageTimes, *, num_workers: int, num_cores: int, on_cpu: bool) -> float:
    """Seconds of `times.loop` if images came decoded."""
    wait = times.loop.get("wait", 0.0)
    if num_workers == 0:
        saved = sum(times.data.get(name, 0.0) for name in _CACHED)
        return times.total - min(saved, wait)
    making = sum(seconds for name, seconds in times.data.items() if name not in _CACHED)
    computing = times.training - wait
    if on_cpu:
        computing, making = _without_contention(times, making, num_workers, num_cores)
    left = min(wait, max(0.0, making / num_workers - computing))
    return times.total - times.training + computing + left


def seconds_with_workers(times: StageTimes, num_workers: int, *, num_cores: int, on_cpu: bool) -> float:
    """Seconds of `times.loop` if `num_workers` made the batches.

    They work beside the network. Where that computes on the cores, all cores together have no less to do.
    """
    computing = times.training - times.loop.get("wait", 0.0)
    bounds = [computing, sum(times.data.values()) / num_workers]
    if on_cpu:
        bounds.append((_computing_cpu(times) + sum(times.data_cpu.values())) / num_cores)
    return times.total - times.training + max(bounds)


@dataclass(frozen=True)
class Contention:
    """How workers and a network on the same cores slow each other down.

    Attributes:
        active: workers that ask for a core while the network computes, on average.
        slowdown: seconds that a core second took a worker.
        alone: the same for the network without workers, by what it asks for: below 1 if that leaves cores free.
    """

    active: float
    slowdown: float
    alone: float

    def slowdown_with(self, active: float) -> float:
        """Seconds that a core second takes beside `active` workers: a line through what was measured."""
        per_worker = (self.slowdown - self.alone) / max(1.0, self.active)
        return max(1.0, self.alone + per_worker * active)

    def rate(self, active: float) -> float:
        """Work that the network does in a second beside `active` workers on average.

        They are taken to work in turn as far as they can: each gets its next batch to make when one of its own is used.
        """
        if active >= 1:
            return 1 / self.slowdown_with(active)
        return (1 - active) / self.slowdown_with(0.0) + active / self.slowdown_with(1.0)


def measure_contention(times: StageTimes, *, num_workers: int, num_cores: int) -> Contention:
    """The contention in `times`, of a network that computes on `num_cores` cores beside `num_workers` workers."""
    wait = times.loop.get("wait", 0.0)
    computing = times.training - wait
    making, making_cpu = _on_cores(times)
    # While the loop waits, all workers are at work, and on their own.
    making_in_wait = min(making, wait * num_workers)
    cpu_in_wait = making_in_wait / max(1.0, num_workers / num_cores)
    mean = making / making_cpu if making_cpu > 0 else 1.0
    making -= making_in_wait
    slowdown = making / (making_cpu - cpu_in_wait) if making_cpu > cpu_in_wait else mean + 1
    # The network has no more threads than there are cores, so that it adds 1 at most.
    slowdown = min(max(1.0, mean, slowdown), max(1.0, mean) + 1) if making > 0 else 1.0
    active = min(float(num_workers), making / computing) if computing > 0 else 0.0
    # In cores: what the network got, and what others had while it and the workers asked for more.
    got = _computing_cpu(times) / computing if computing > 0 else 0.0
    taken = max(0.0, num_cores - got - active / slowdown)
    alone = (min(num_cores, got * slowdown) + taken * slowdown) / num_cores
    return Contention(active, slowdown, min(slowdown, alone))


def _without_contention(times: StageTimes, making: float, num_workers: int, num_cores: int) -> tuple[float, float]:
    """Seconds of computing, and of the workers, if these had only what took them `making` seconds."""
    contention = measure_contention(times, num_workers=num_workers, num_cores=num_cores)
    measured = times.training - times.loop.get("wait", 0.0)
    on_cores, core_seconds = _on_cores(times)
    mean = max(1.0, on_cores / core_seconds) if core_seconds > 0 else 1.0
    rate, active, computing, needed = contention.rate(contention.active), contention.active, measured, making
    # Less work makes for less contention, so that it takes less time than before, and so for even less: rounds settle.
    for _ in range(_ROUNDS):
        needed = making * contention.slowdown_with(max(1.0, active)) / mean
        waited = max(0.0, needed / num_workers - computing)
        beside = max(0.0, needed - waited * num_workers)
        active = min(float(num_workers), beside / computing) if computing > 0 else 0.0
        computing = measured * rate / contention.rate(active)
    return computing, needed


def _on_cores(times: StageTimes) -> tuple[float, float]:
    """Seconds in which workers asked for a core, those that they waited for a disk left out; and that they had one."""
    clean = sum(seconds for name, seconds in times.data.items() if name != _DISK)
    clean_cpu = sum(seconds for name, seconds in times.data_cpu.items() if name != _DISK)
    reading = min(
        times.data.get(_DISK, 0.0), times.data_cpu.get(_DISK, 0.0) * (clean / clean_cpu if clean_cpu else 1.0)
    )
    return clean + reading, clean_cpu + times.data_cpu.get(_DISK, 0.0)


def _computing_cpu(times: StageTimes) -> float:
    """Core seconds of the main process beside waiting and evaluation."""
    return sum(seconds for name, seconds in times.loop_cpu.items() if name not in ("wait", "evaluation"))
