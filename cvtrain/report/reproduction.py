"""Two runs of one config, compared: every figure that was logged, every weight, and what may explain a difference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cvtrain.config.serialize import flatten
from cvtrain.data.sources.digest import describe_changes
from cvtrain.report.json_file import read_json

# Figures of the machine, not of the training.
_MEASURED = "perf/"
_VERSIONS, _DEVICES = "versions", "devices"


@dataclass(frozen=True)
class FirstDifference:
    """The first figure that differs. None: that run has not logged it."""

    step: int
    epoch: int
    metric: str
    before: float | None
    now: float | None

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "nothing" if value is None else repr(value)

        gap = "" if self.before is None or self.now is None else f", a difference of {abs(self.now - self.before):.3g}"
        where = f"step {self.step} (epoch {self.epoch})"
        return f"{where}: {self.metric} was {shown(self.before)}, now {shown(self.now)}{gap}"


@dataclass(frozen=True)
class FigureComparison:
    """`num_values` figures up to `last_step` were compared, of which `num_different` differ."""

    num_values: int
    num_different: int
    last_step: int
    first: FirstDifference | None


@dataclass(frozen=True)
class WeightComparison:
    """`num_different` of `num_tensors` differ, by `largest` at most, the first of them `first`."""

    num_tensors: int
    num_different: int
    largest: float
    first: str


def compare_figures(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> FigureComparison:
    """Compare the rows of two metrics.jsonl, up to the last step of the first.

    Times and speeds are left out. A figure that a run has logged twice at a step, as one that was resumed, counts as
    the last of them.
    """
    old, new = _by_place(before), _by_place(now)
    last_step = max((step for step, _, _ in old), default=0)
    new = {place: value for place, value in new.items() if place[0] <= last_step}
    missing = object()
    different = [place for place in {**old, **new} if old.get(place, missing) != new.get(place, missing)]
    first = None
    if different:
        place = min(different, key=lambda item: item[0])  # of one step, the first that was logged
        first = FirstDifference(*place, before=old.get(place), now=new.get(place))
    return FigureComparison(len(old), len(different), last_step, first)


def compare_weights(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> WeightComparison:
    """Compare the weights of two checkpoints bit by bit."""
    names = list(dict.fromkeys([*before, *now]))
    different = [name for name in names if not _same_bits(before.get(name), now.get(name))]
    gaps = [
        float((before[name].double() - now[name].double()).abs().max())
        for name in different
        if name in before and name in now and before[name].shape == now[name].shape and before[name].numel()
    ]
    return WeightComparison(len(names), len(different), max(gaps, default=0.0), different[0] if different else "")


def likely_causes(
    before: Path, now: Path, old: Mapping[str, Any], new: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what differs between the runs and may explain other figures.

    Args:
        before, now: the run folders.
        old, new: their last checkpoints.
        config: the run's, as plain values.
    """
    if old.get("data_digest") and (changes := describe_changes(old["data_digest"], new["data_digest"])):
        yield f"the images have changed: {changes}"
    environments = [read_json(folder / "environment.json") for folder in (before, now)]
    for title, name in (("versions", _VERSIONS), ("devices and threads", _DEVICES)):
        first, second = (flatten(environment.get(name, {})) for environment in environments)
        changed = [
            f"{key} {first.get(key, 'none')} -> {second.get(key, 'none')}"
            for key in dict.fromkeys([*first, *second])
            if first.get(key) != second.get(key)
        ]
        if changed:
            yield f"other {title}: {', '.join(changed)}"
    first, second = (environment.get("machine", {}) for environment in environments)
    if first.get("cpu") != second.get("cpu"):
        yield f"another processor: {first.get('cpu')} -> {second.get('cpu')}"
    first, second = (environment.get("git") or {} for environment in environments)
    if first.get("revision") != second.get("revision"):
        yield f"another git revision: {first.get('revision')} -> {second.get('revision')}"
    elif second.get("dirty") or first.get("dirty"):
        yield "files of the git repository differed from its revision, before or now"
    summaries = [read_json(folder / "summary.json") for folder in (before, now)]
    devices = [str(summary.get("device", "unknown")) for summary in summaries]
    if devices[0] != devices[1]:
        yield f"another device: {devices[0]} -> {devices[1]}"
    trainer = config.get("trainer", {})
    if any(device.startswith("cuda") for device in devices) and not trainer.get("deterministic"):
        yield "trainer.deterministic=false: kernels of a GPU may round differently from run to run"
    if trainer.get("max_minutes") is not None:
        yield f"trainer.max_minutes={trainer['max_minutes']:g} ends a run by the clock"
    if (before / "history").is_dir():
        resumed = sorted(path.name for path in (before / "history").iterdir())
        yield f"the run was resumed ({', '.join(resumed)}), perhaps with other settings"


def _by_place(rows: list[dict[str, Any]]) -> dict[tuple[int, int, str], float | None]:
    """Return figures by (step, epoch, name), in the order in which they were logged."""
    return {
        (int(row["step"]), int(row["epoch"]), name): value
        for row in rows
        for name, value in row.items()
        if name not in ("step", "epoch") and not name.startswith(_MEASURED)
    }


def _same_bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]  # NaN equals itself
    return torch.equal(*flat)
