"""What a checkpoint holds: the snapshot of a run's state, and the rules for its entries."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import RunError

FORMAT = "cvtrain-checkpoint"
FORMAT_VERSION = 2
REQUIRED = ("config", "classes", "preprocessing", "model")

# Images larger than this are no claim that memory is taken for.
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


def to_cpu(value: Any, *, name: str = "state") -> Any:
    """A copy of a nested state with every tensor on the CPU, sharing no memory with the original.

    The copy holds what a checkpoint may hold and nothing else: dict, list, tuple, str, int, float, bool, None, and
    plain tensors that fill their memory. Subclasses and NumPy's scalars become these; a view is copied without what it
    is a view of. When this returns, the copies are complete: for a tensor on another device it waits.

    Raises:
        SnapshotError: something in it can be none of these; the message says where it is.
    """
    if value is None or type(value) in (bool, float):
        return value
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value, name)
    if isinstance(value, Mapping):
        return {_plain_key(key, name): to_cpu(item, name=f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_cpu(item, name=f"{name}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return to_cpu(value.item(), name=name)
    if isinstance(value, str):
        return _copy_text(value, name)
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


def _copy_text(value: str, name: str) -> str:
    text = str.__str__(value)  # and not str(): an enum of texts is its value here
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SnapshotError(f"{name} is {text!r}, which is no Unicode text: a checkpoint cannot keep it") from None
    return text


def _copy_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.dtype not in DTYPES or tensor.is_meta:
        raise SnapshotError(
            f"{name} is a {tensor.dtype} tensor ({tensor.layout}) on {tensor.device}, kept is none such"
        )
    return tensor.detach().to("cpu", copy=True)


def _plain_key(key: Any, name: str) -> str | int:
    if isinstance(key, str):
        return _copy_text(key, name)
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < 2**31:
        return int(key)
    raise SnapshotError(f"{name} has a key {key!r}; a checkpoint's keys are text or numbers from 0 to 2147483647")


def inference_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that were evaluated: the average's where the run kept one, else the model's."""
    average = state.get("average")
    return average["model"] if average is not None else state["model"]


def entry_problem(state: dict[str, Any], tensor_type: type) -> str | None:
    """What is wrong with the entries of a checkpoint, as the end of a sentence; None if nothing is.

    Args:
        state: the entries, with tensors as instances of `tensor_type`.
    """
    missing = [name for name in REQUIRED if name not in state]
    if missing:
        return f"is incomplete, it lacks {', '.join(missing)}"
    weights = state["model"]
    average = state.get("average")
    if not _is_weights(weights, tensor_type):
        return "holds no weights under `model`"
    if average is not None and not (_is_dict(average) and _is_weights(average.get("model"), tensor_type)):
        return "holds no weights under `average`"
    for name, rule, is_right in _RULES:
        if name in state and not is_right(state[name]):
            return f"has a false entry `{name}`: it has to be {rule}"
    return None


def _is_weights(value: Any, tensor_type: type) -> bool:
    """A state dict: extra state of modules may be anything."""
    return _is_dict(value) and all(
        isinstance(item, tensor_type) or name.endswith("_extra_state") for name, item in value.items()
    )


def _is_dict(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def _is_plain(value: Any, *, finite: bool = False) -> bool:
    """Text, numbers, true, false and null, and lists and dicts of them."""
    if type(value) is dict:
        return _is_dict(value) and all(_is_plain(item, finite=finite) for item in value.values())
    if type(value) in (list, tuple):
        return all(_is_plain(item, finite=finite) for item in value)
    if type(value) is float:
        return math.isfinite(value) or not finite
    return value is None or type(value) in (str, bool, int)


def _is_config(value: Any) -> bool:
    return _is_dict(value) and _is_plain(value)


def _is_classes(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) > 0
        and all(type(name) is str for name in value)
        and len(set(value)) == len(value)
    )


def _is_preprocessing(value: Any) -> bool:
    return (
        _is_dict(value)
        and _is_plain(value, finite=True)
        and all(_is_size(value[name]) for name in ("image_size", "channels") if name in value)
    )


def _is_size(value: Any) -> bool:
    sizes = value if type(value) in (list, tuple) else [value]
    return all(type(size) is int and 1 <= size <= _MAX_IMAGE_SIZE for size in sizes)


def _is_position(value: Any) -> bool:
    return _is_dict(value) and all(_is_count(value.get(name)) for name in ("step", "epoch", "batch"))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_optimizer(value: Any) -> bool:
    return (
        _is_dict(value)
        and type(value.get("state")) is dict
        and type(value.get("param_groups")) is list
        and all(_is_dict(group) for group in value["param_groups"])
    )


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


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
    ("schedule", "a dict", _is_dict),
    ("scaler", "a dict", _is_dict),
    ("monitor", "a dict", _is_dict),
    ("window", "a dict", _is_dict),
    ("stopwatch", "a dict", _is_dict),
    ("generators", "a dict", _is_dict),
    ("faults", "a dict", _is_dict),
    ("loggers", "a dict", _is_dict),
    ("metrics", "a dict", _is_dict),
)
