"""What differs between two runs that should be the same to the bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cvtrain.checkpoint import load_checkpoint
from cvtrain.loggers.files import read_metrics

# Times, which no run repeats; the config, which says how the run was resumed and with how many workers; run ids.
NOT_COMPARED = ("elapsed_seconds", "stopwatch", "config", "loggers")
SUMMARY_KEYS = ("end_reason", "epochs", "steps", "best", "last", "images", "skipped_images", "skipped_steps")
TABLES = ("predictions_val.csv", "per_class_val.csv")
# Pictures, logs and the record of the environment hold times or the run's history.
MAX_DIFFERENCES = 20


def differences(one: Path, other: Path) -> list[str]:
    """Every difference between two run folders, in words; an empty list: equal to the bit.

    Compared are the whole state in last.pt and best.pt (weights, optimizer, average, monitor, position, generators,
    partial metrics), the rows of metrics.jsonl without `perf/...`, the summary without times, and the tables of
    predictions. Temporary files in `other` count as differences.
    """
    return list(_differences(one, other))[:MAX_DIFFERENCES]


def _differences(one: Path, other: Path) -> Iterator[str]:
    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(folder / "checkpoints" / name) for folder in (one, other))
        yield from compare(_compared(first), _compared(second), name)
    yield from compare(metric_rows(one), metric_rows(other), "metrics.jsonl")
    first, second = (json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (one, other))
    for key in SUMMARY_KEYS:
        yield from compare(first[key], second[key], f"summary.json: {key}")
    for name in TABLES:
        if (one / name).read_bytes() != (other / name).read_bytes():
            yield f"{name} differs"
    yield from (f"left over: {path}" for path in temporary_files(other))


def _compared(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in NOT_COMPARED}


def compare(one: Any, other: Any, where: str) -> Iterator[str]:
    """The places below `where` at which two nested values differ; tensors and floats are compared to the bit."""
    if type(one) is not type(other):
        yield f"{where}: {type(one).__name__} and {type(other).__name__}"
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{where}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
        elif not torch.equal(_bits(one), _bits(other)):
            count = int((_bits(one) != _bits(other)).sum())
            yield f"{where}: {count} of {one.numel() * one.element_size()} bytes differ"
    elif isinstance(one, dict):
        for key in one.keys() | other.keys():
            if key in one and key in other:
                yield from compare(one[key], other[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is in one only"
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield f"{where}: {len(one)} and {len(other)} entries"
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from compare(left, right, f"{where}[{index}]")
    elif one != other and not (one != one and other != other):
        yield f"{where}: {one!r} and {other!r}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without speeds."""
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def temporary_files(folder: Path) -> list[Path]:
    """What was being written when a process was killed, and is still there."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith((".tmp", ".part")) or path.name[:1] == ".")
