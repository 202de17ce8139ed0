"""The entries of a checkpoint: copies of tensors and plain values, and the rules for them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import RunError

FORMAT = "cvtrain-checkpoint"
FORMAT_VERSION = 2
REQUIRED = ("config", "classes", "preprocessing", "model")
# The EMA of the weights: the entry's name, and its name in files of earlier versions.
EMA_KEYS = ("ema", "average")
# No photo that a network is given is larger.
_MAX_IMAGE_SIZE = 16_384
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
)


class SnapshotError(RunError, TypeError):
    """A state that a checkpoint cannot hold, such as a NumPy array that a module of the user's keeps."""


def snapshot(value: Any, *, name: str = "state") -> Any:
    """Copy a nested state with every tensor on the CPU, sharing no memory with the original.

    The copy holds dict, list, tuple, str, int, float, bool, None and plain tensors that fill their memory, and nothing
    else. Subclasses and NumPy's scalars become these; a view is copied without what it is a view of. For a tensor on
    another device this waits until the copy is complete.

    Raises:
        SnapshotError: something in it can be none of these; the message gives its place.
    """
    if value is None or type(value) in (bool, float):
        return value
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.dtype not in DTYPES or value.is_meta:
            raise SnapshotError(
                f"{name} is a {value.dtype} tensor ({value.layout}) on {value.device}: a checkpoint keeps none such"
            )
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {_plain_key(key, name): snapshot(item, name=f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [snapshot(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return snapshot(value.item(), name=name)
    if isinstance(value, str):
        return _plain_text(value, name)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise SnapshotError(f"{name} is {value}, a number of more than 64 bits, which a checkpoint cannot keep")
        return int(value)
    raise SnapshotError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot keep: it holds "
        "tensors, text, numbers, true, false and null, and lists and dicts of them"
    )


def _plain_text(value: str, name: str) -> str:
    text = str.__str__(value)  # and not str(): an enum of texts is its value here
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SnapshotError(f"{name} is {text!r}, which is no Unicode text: a checkpoint cannot keep it") from None
    return text


def _plain_key(key: Any, name: str) -> str | int:
    if isinstance(key, str):
        return _plain_text(key, name)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < 2**31:
        return int(key)
    raise SnapshotError(f"{name} has a key {key!r}; a checkpoint's keys are text or numbers from 0 to 2147483647")


def inference_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights that were evaluated: the EMA's where the run kept one, else the model's."""
    ema = _ema(state)
    return state["model"] if ema is None else ema["model"]


def _ema(state: dict[str, Any]) -> Any:
    return next((state[key] for key in EMA_KEYS if state.get(key) is not None), None)


def validate_entries(state: dict[str, Any]) -> str | None:
    """Return what is wrong with the entries of a checkpoint, as the end of a sentence; None if nothing is."""
    missing = [name for name in REQUIRED if name not in state]
    if missing:
        return f"is incomplete, it lacks {', '.join(missing)}"
    if not _is_weights(state["model"]):
        return "holds no weights under `model`"
    for key in EMA_KEYS:
        ema = state.get(key)
        if ema is not None and not (_is_dict(ema) and _is_weights(ema.get("model"))):
            return f"holds no weights under `{key}`"
    for name, rule, is_right in _RULES:
        if name in state and not is_right(state[name]):
            return f"has a false entry `{name}`: it has to be {rule}"
    return None


def _is_weights(value: Any) -> bool:
    """True for a state dict; the extra state of modules may be anything."""
    return _is_dict(value) and all(
        isinstance(item, torch.Tensor) or name.endswith("_extra_state") for name, item in value.items()
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(type(key) is str for key in value)


def _is_plain(value: Any, *, finite: bool = False) -> bool:
    """True for text, numbers, true, false and null, and lists and dicts of them."""
    if isinstance(value, dict):
        return _is_dict(value) and all(_is_plain(item, finite=finite) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, finite=finite) for item in value)
    if isinstance(value, float):
        return math.isfinite(value) or not finite
    return value is None or isinstance(value, (str, bool, int))


def _is_config(value: Any) -> bool:
    return _is_dict(value) and _is_plain(value)


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) == len(set(map(str, value))) and _is_plain(dict.fromkeys(value))


def _is_preprocessing(value: Any) -> bool:
    return (
        _is_dict(value)
        and _is_plain(value, finite=True)
        and all(_is_size(value[name]) for name in ("image_size", "channels") if name in value)
        and value.get("interpolation", "bilinear") in ("bilinear", "bicubic")
    )


def _is_size(value: Any) -> bool:
    sizes = value if isinstance(value, (list, tuple)) else [value]
    return all(type(size) is int and 1 <= size <= _MAX_IMAGE_SIZE for size in sizes)


def _is_position(value: Any) -> bool:
    return _is_dict(value) and all(_is_count(value.get(name)) for name in ("step", "epoch", "batch"))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_optimizer(value: Any) -> bool:
    return (
        _is_dict(value)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(_is_dict(group) for group in value["param_groups"])
    )


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


_DICTS = [
    "schedule",
    "scaler",
    "monitor",
    "window",
    "stopwatch",
    "generators",
    "faults",
    "recovery",
    "loggers",
    "metrics",
    "paths",
]
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("config", "a dict of plain values", _is_config),
    ("classes", "a list of different names", _is_classes),
    (
        "preprocessing",
        f"a dict of plain values with finite numbers and sizes from 1 to {_MAX_IMAGE_SIZE}",
        _is_preprocessing,
    ),
    ("position", "whole numbers from 0 for step, epoch and batch", _is_position),
    ("optimizer", "state and param_groups", _is_optimizer),
    ("elapsed_seconds", "a number of seconds", _is_seconds),
    *((name, "a dict", _is_dict) for name in _DICTS),
)
