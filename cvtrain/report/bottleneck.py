"""Where the time of a run went, and the setting to try, by shares of the measured time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cvtrain.config.machine import usable_cores
from cvtrain.config.schema.data import DataCache, FileDataConfig
from cvtrain.config.schema.root import Config
from cvtrain.config.schema.trainer import Precision
from cvtrain.data.cache.device_cache import DeviceLoader, can_be_resident
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.num_workers import MAX_WORKERS
from cvtrain.runtime.precision import has_native_bf16
from cvtrain.training.build import Run

# After fewer steps, starting up is most of what was measured.
MIN_STEPS = 20
# Shares of the time from which on a stage is worth a sentence. Evaluation in each epoch is normal.
_LARGE = {"wait": 0.15, "evaluation": 0.3, "checkpoint": 0.15, "logging": 0.15, "transfer": 0.15}
_MOSTLY_COMPUTING = 0.6
_CACHED_STAGES = ("read", "decode")
_STAGES_IN_WORDS = {
    "read": "reading",
    "decode": "decoding",
    "cache": "filling the cache",
    "augment": "augmenting",
    "collate": "putting batches together",
}


@dataclass(frozen=True)
class RunFacts:
    """What the setting to try depends on. Each `*_setting` is None where no setting can help.

    Attributes:
        cache_setting: against decoding.
        workers_setting: against waiting for data.
        eval_setting: against evaluation.
        save_setting: against checkpoints.
        transfer_setting: against copies to the device.
        compute_setting: against computing.
        uses_features: the head trains on features of a frozen backbone, which are computed once.
    """

    cache_setting: str | None = None
    workers_setting: str | None = None
    eval_setting: str | None = None
    save_setting: str | None = None
    transfer_setting: str | None = None
    compute_setting: str | None = None
    uses_features: bool = False


@dataclass(frozen=True)
class Bottleneck:
    """The sentence, and the setting that it proposes, if any."""

    sentence: str
    setting: str | None = None


def find_bottleneck(
    loop: Mapping[str, float], data: Mapping[str, float], facts: RunFacts, *, num_steps: int
) -> Bottleneck | None:
    """Return what took the largest share of the time, or None after fewer than `MIN_STEPS` steps.

    Args:
        loop: seconds of the training loop by stage, evaluation included.
        data: seconds of making the training batches by stage, over all processes that did it.
        facts: what the setting to try depends on.
        num_steps: training steps of the run.
    """
    total = sum(loop.values())
    if num_steps < MIN_STEPS or total <= 0:
        return None
    shares = {stage: seconds / total for stage, seconds in loop.items()}
    large = [stage for stage, least in _LARGE.items() if shares.get(stage, 0.0) >= least]
    if large:
        stage = max(large, key=lambda stage: shares[stage])
        return _describe(stage, f"{shares[stage]:.0%} of the time", data, facts)
    computing = sum(shares.get(name, 0.0) for name in ("prepare", "forward_backward", "optimizer"))
    sentence = f"computing {computing:.0%} of the time, waiting for data {shares.get('wait', 0.0):.0%}"
    if computing < _MOSTLY_COMPUTING:
        return Bottleneck(sentence)
    if facts.compute_setting is None:
        return Bottleneck(f"{sentence}: the device is the limit")
    return _with_setting(sentence, facts.compute_setting)


def _describe(stage: str, share: str, data: Mapping[str, float], facts: RunFacts) -> Bottleneck:
    if stage == "evaluation":
        return _with_setting(f"evaluating {share}", facts.eval_setting)
    if stage == "checkpoint":
        return _with_setting(f"copying checkpoints {share}", facts.save_setting)
    if stage == "logging":
        return _with_setting(f"logging {share}", "a larger trainer.log_every_steps")
    if stage == "transfer":
        return _with_setting(f"copying batches to the device {share}", facts.transfer_setting)
    if facts.uses_features:
        return Bottleneck(f"waiting for features {share}, each computed once: more epochs cost little")
    if not data:
        return Bottleneck(f"waiting for data {share}")
    mostly = max(data, key=lambda name: data[name])
    setting = facts.cache_setting if mostly in _CACHED_STAGES else None
    return _with_setting(
        f"waiting for data {share}, mostly {_STAGES_IN_WORDS[mostly]}", setting or facts.workers_setting
    )


def _with_setting(sentence: str, setting: str | None) -> Bottleneck:
    return Bottleneck(f"{sentence}: try {setting}" if setting else sentence, setting)


def collect_facts(run: Run) -> RunFacts:
    """Return what the setting to try depends on."""
    config, trainer, loader = run.config, run.trainer, run.loaders.train
    data, on_cuda = config.data, trainer.device.type == "cuda"
    is_decoded_each_epoch = isinstance(data, FileDataConfig) and data.cache is DataCache.none
    # Batches that could be one indexing on the device, and are made on the host.
    could_be_on_device = on_cuda and not isinstance(loader, DeviceLoader) and can_be_resident(loader, loader.plan)
    compute = None
    if trainer.dtype == torch.float32 and has_native_bf16(trainer.device):
        if on_cuda:
            compute = "trainer.precision=bf16"
        elif config.trainer.precision is not Precision.auto:  # which has timed both
            compute = "trainer.precision=auto"
    elif on_cuda and not config.trainer.compile:
        compute = "trainer.compile=true"
    return RunFacts(
        cache_setting="data.cache=auto" if is_decoded_each_epoch and config.trainer.epochs > 1 else None,
        workers_setting=more_workers(
            loader.num_workers,
            is_in_memory=loader.dataset.is_ready_made,
            num_batches=loader.num_batches,
            num_cores=usable_cores() // run.trainer.world.local_world_size,
            on_cpu=not on_cuda,
        ),
        eval_setting=less_evaluation(config),
        save_setting=fewer_saves(config),
        transfer_setting="data.device_cache=always" if could_be_on_device else None,
        compute_setting=compute,
        uses_features=not isinstance(trainer.train_loader, BatchLoader),
    )


def more_workers(num_workers: int, *, is_in_memory: bool, num_batches: int, num_cores: int, on_cpu: bool) -> str | None:
    """Return the setting for more workers where cores are left for them.

    Beside a network on the CPU, two cores have none left, and of more half.
    """
    most = min(num_cores // 2 if on_cpu else num_cores, MAX_WORKERS, num_batches)
    if is_in_memory or most <= num_workers or (on_cpu and num_cores <= 2):
        return None
    return f"data.num_workers={most}"


def less_evaluation(config: Config) -> str | None:
    """Return the setting for fewer evaluations; a run of one epoch that evaluates at its end has none."""
    if config.trainer.eval_every_steps is not None:
        return "a larger trainer.eval_every_steps"
    every = config.trainer.eval_every_epochs
    return (
        f"trainer.eval_every_epochs={min(5 * every, config.trainer.epochs)}" if config.trainer.epochs > every else None
    )


def fewer_saves(config: Config) -> str | None:
    """Return the setting by which the run saves most often; each evaluation saves too."""
    if config.checkpoint.every_steps is not None:
        return "a larger checkpoint.every_steps"
    if config.checkpoint.every_minutes is not None and config.checkpoint.every_minutes < 1:
        return "a larger checkpoint.every_minutes"
    return less_evaluation(config)


def summarize_times(
    loop: Mapping[str, float], data: Mapping[str, float], bottleneck: Bottleneck | None, *, num_workers: int
) -> dict[str, Any]:
    """Return the `time` section of summary.json: seconds and shares by stage, and the sentence."""
    return {
        "loop_seconds": sum(loop.values()),
        "loop": _shares(loop),
        "data": _shares(data),
        "data_workers": num_workers,
        "bottleneck": None if bottleneck is None else bottleneck.sentence,
        "remedy": None if bottleneck is None else bottleneck.setting,
    }


def _shares(seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    total = sum(seconds.values())
    return {name: {"seconds": value, "share": value / total if total else 0.0} for name, value in seconds.items()}
