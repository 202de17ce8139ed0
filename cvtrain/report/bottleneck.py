"""What limits a run, in one sentence, and what would make it faster, by arithmetic on what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cvtrain.report.estimate import seconds_with_cache, seconds_with_workers
from cvtrain.training.timer import StageTimes

# A change that promises less than this is not worth a word.
WORTHWHILE = 1.05
# Up to here an evaluation in each epoch is not remarkable.
_LARGE_EVALUATION = 0.3
_LARGE_REST = 0.15
_WORDS = {
    "read": "reading",
    "decode": "decoding",
    "cache": "filling the cache",
    "augment": "augmenting",
    "collate": "putting batches together",
}


@dataclass(frozen=True)
class Facts:
    """What a run is, as far as advice depends on it.

    Attributes:
        num_workers: processes that made the training batches; 0: the main one.
        num_cores: cores that the run may use.
        on_cpu: the network computes on these cores too.
        can_cache: images are decoded in every epoch, and need not be: `cache_remedy` is the setting.
        faster_precision: the device has native bf16, and the run is in fp32.
        can_compile: trainer.compile is off, on a device where it pays.
        is_ready_made: images lie in memory as the network takes them; a worker would only send them around.
        save_remedy: the setting by which the run saves most often.
        keeps_features: the head trains on features of a frozen backbone, which are computed once.
    """

    num_workers: int
    num_cores: int
    on_cpu: bool
    can_cache: bool = False
    cache_remedy: str = "data.cache=auto"
    save_remedy: str = "checkpoint.every_minutes"
    is_ready_made: bool = False
    faster_precision: bool = False
    can_compile: bool = False
    keeps_features: bool = False


@dataclass(frozen=True)
class Bottleneck:
    """The sentence; the setting that it proposes, if any; how many times faster an epoch would then be, if known.

    `estimates` has that for every setting that was looked at, by itself.
    """

    sentence: str
    remedy: str | None = None
    speedup: float | None = None
    estimates: Mapping[str, float] = field(default_factory=dict)


def find_bottleneck(times: StageTimes, facts: Facts) -> Bottleneck:
    """The remedy that would save most of the measured time, or what the time is spent on if none would."""
    if times.total <= 0:
        return Bottleneck("nothing was measured")
    wait = times.loop.get("wait", 0.0) / times.total
    if facts.keeps_features and wait >= _LARGE_REST:
        # What is waited for comes once: no setting of the data makes an epoch faster that has its features already.
        return Bottleneck(f"waiting for features {wait:.0%} of the time, each computed once: more epochs cost little")
    proposals = [
        *_data_proposals(times, facts),
        *_evaluation_proposals(times),
    ]
    estimates = {finding.remedy: finding.speedup for finding in proposals if finding.remedy and finding.speedup}
    best = max(proposals, key=lambda finding: finding.speedup or 0.0, default=None)
    if best is None or (best.speedup or 0.0) < WORTHWHILE:
        best = _without_estimate(times, facts)
    return replace(best, estimates=estimates)


def _data_proposals(times: StageTimes, facts: Facts) -> list[Bottleneck]:
    data = sum(times.data.values())
    if data <= 0:
        return []
    share = times.loop.get("wait", 0.0) / times.total
    mostly = _largest_stage(times)
    opening = f"waiting for data {share:.0%} of the time, mostly {_WORDS.get(mostly, mostly)}"
    if share < 0.05:
        opening = f"{_WORDS.get(mostly, mostly)} takes cores from computing"
    found = []
    if facts.can_cache:
        seconds = seconds_with_cache(
            times, num_workers=facts.num_workers, num_cores=facts.num_cores, on_cpu=facts.on_cpu
        )
        speedup = times.total / seconds
        found.append(_proposal(opening, facts.cache_remedy, speedup))
    spare = facts.num_cores if not facts.on_cpu or facts.num_workers == 0 else 0
    if spare > facts.num_workers and not facts.is_ready_made:
        speedup = times.total / seconds_with_workers(times, spare, num_cores=facts.num_cores, on_cpu=facts.on_cpu)
        found.append(_proposal(opening, f"data.num_workers={spare}", speedup))
    return found


def _largest_stage(times: StageTimes) -> str:
    """The stage of the data that asks for most: of a core, or of a disk.

    Seconds alone would blame what a worker does as it wakes up, when other processes have its core.
    """
    return max(
        times.data,
        key=lambda name: times.data[name] if name == "read" else times.data_cpu.get(name, times.data[name]),
        default="collate",
    )


def _evaluation_proposals(times: StageTimes) -> list[Bottleneck]:
    evaluation = times.loop.get("evaluation", 0.0)
    share = evaluation / times.total
    if share < _LARGE_EVALUATION or times.num_epochs < 1:
        return []
    every = 5
    speedup = times.total / (times.total - evaluation * (1 - 1 / every))
    return [_proposal(f"evaluating {share:.0%} of the time", f"trainer.eval_every_epochs={every}", speedup)]


def _proposal(opening: str, remedy: str, speedup: float) -> Bottleneck:
    return Bottleneck(f"{opening}: {remedy} would make an epoch about {speedup:.1f}x faster", remedy, round(speedup, 2))


def _without_estimate(times: StageTimes, facts: Facts) -> Bottleneck:
    """What the time goes into where no setting has a measured gain."""
    wait = times.loop.get("wait", 0.0) / times.total
    computing = sum(times.loop.get(name, 0.0) for name in ("prepare", "forward_backward", "optimizer")) / times.total
    writing = {name: times.loop.get(name, 0.0) / times.total for name in ("logging", "checkpoint")}
    largest = max(writing, key=lambda name: writing[name])
    if writing[largest] >= _LARGE_REST:
        remedy = "trainer.log_every_steps" if largest == "logging" else facts.save_remedy
        words = "logging" if largest == "logging" else "copying checkpoints"
        return Bottleneck(
            f"{words} {writing[largest]:.0%} of the time: a larger {remedy} would save some of it", remedy
        )
    if wait >= _LARGE_REST:
        mostly = _largest_stage(times)
        advice = "a lighter augment or more cores would help" if mostly == "augment" else "more cores would help"
        return Bottleneck(f"waiting for data {wait:.0%} of the time, mostly {_WORDS.get(mostly, mostly)}: {advice}")
    transfer = times.loop.get("transfer", 0.0) / times.total
    if transfer >= _LARGE_REST:
        advice = "data.device_cache=always saves it where nothing augments images one by one"
        return Bottleneck(f"copying batches to the device {transfer:.0%} of the time: {advice}")
    opening = f"computing {computing:.0%} of the time, waiting for data {wait:.0%}"
    if facts.faster_precision:
        return Bottleneck(f"{opening}: trainer.precision=bf16 is what may help", "trainer.precision=bf16")
    if facts.can_compile and computing >= 0.6:
        return Bottleneck(
            f"{opening}: trainer.compile=true may help, beyond it a faster device", "trainer.compile=true"
        )
    return Bottleneck(f"{opening}: no setting stands out" if computing < 0.6 else f"{opening}: the device is the limit")
