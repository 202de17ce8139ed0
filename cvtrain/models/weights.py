"""State dicts: reading them from files, and loading them with every difference told by name."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.models.heads import is_inside

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# Where training programs keep the state dict in a larger file, ours first.
_WRAPPER_KEYS = ("model", "state_dict", "model_state_dict")
# What DistributedDataParallel and torch.compile put before every name.
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_NAMES_SHOWN = 8


class WeightsError(RunError, ValueError):
    """A state dict that does not fit its network; the message names the keys and shapes."""


def is_file_name(weights: str) -> bool:
    """True if `weights` means a file, not a name that a library gave to published weights."""
    return Path(weights).suffix in SUFFIXES or "/" in weights or "\\" in weights


def read_state(path: Path, *, key: str = "model.weights") -> Mapping[str, Any]:
    """The state dict in a local file, on the CPU; nothing in the file can run code.

    A larger file that holds it under `model` (a cvtrain checkpoint), `state_dict` or `model_state_dict` is opened;
    the prefixes of DistributedDataParallel and torch.compile are taken off.

    Args:
        path: .pt, .pth, .bin or .ckpt (torch.save) or .safetensors.
        key: the setting that names the file, for errors.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds no state dict.
    """
    if not path.is_file():
        raise ConfigError(key=key, value=path, rule=f"there is no file {path.absolute()}")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except ImportError as error:
        raise ConfigError(
            key=key, value=path, rule="needs the package safetensors", remedy="pip install safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(
            key=key,
            value=path,
            rule=f"cannot be read as tensors and plain values: {_first_line(error)}",
            remedy="save only the state dict: torch.save(network.state_dict(), path)",
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ConfigError(key=key, value=path, rule=f"is no safetensors file: {_first_line(error)}") from error
    return _unwrap(content, path, key)


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _unwrap(content: Any, path: Path, key: str) -> Mapping[str, Any]:
    if isinstance(content, Mapping) and isinstance(content.get("average"), Mapping):
        content = content["average"]  # a checkpoint of ours that averages: those weights were evaluated, take them
    for wrapper in _WRAPPER_KEYS:
        if isinstance(content, Mapping) and _is_state(content.get(wrapper)):
            content = content[wrapper]
            break
    if not _is_state(content):
        shown = ", ".join(str(name) for name in list(content)[:_NAMES_SHOWN]) if isinstance(content, Mapping) else ""
        raise ConfigError(
            key=key,
            value=path,
            rule=f"holds no state dict but a {type(content).__name__}" + (f" of {shown}" if shown else ""),
            remedy="save only the state dict: torch.save(network.state_dict(), path)",
        )
    state = content
    for prefix in _WRAPPER_PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = OrderedDict((name.removeprefix(prefix), tensor) for name, tensor in state.items())
    return state


def _is_state(value: Any) -> bool:
    """A non-empty mapping of names to tensors; extra state of modules may be anything."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(item, torch.Tensor) for item in value.values())
        and all(
            isinstance(name, str) and (isinstance(item, torch.Tensor) or name.endswith("_extra_state"))
            for name, item in value.items()
        )
    )


def load_weights(
    module: nn.Module,
    state: Mapping[str, Any],
    *,
    head: tuple[str, ...] = (),
    source: str,
    key: str = "model.weights",
    remedy: str = "",
) -> tuple[str, ...]:
    """Copy `state` into `module`, all of it but heads for another number of classes.

    A head whose shapes differ or that `state` lacks keeps the values it has. Counters of batches that batch norm keeps
    may be missing: files from before torch 0.4.1 have none.

    Args:
        state: names to tensors; left as it is. Its `_metadata` tells old layouts, as torch keeps it; without one it
            is taken to be in the layout of `module`.
        head: names of submodules that may differ.
        source: where `state` came from, for errors.
        key: the setting that chose it.
        remedy: what to do about an error, if not only to choose the right network.

    Returns:
        Names of the parameters of `module` that kept their values, since their head was replaced.

    Raises:
        ConfigError: anything else is missing, unexpected or of another shape; each is told by name. The values in
            `module` are undefined then.
    """
    own = module.state_dict()
    replaced = tuple(layer for layer in head if _differs(layer, state, own))
    taken = with_metadata({name: value for name, value in state.items() if not is_inside(name, replaced)}, state, own)
    problems = _misshaped(taken, own)
    if not problems:
        try:
            result = module.load_state_dict(taken, strict=False)
        except RuntimeError as error:  # shapes of keys in an old layout, which torch renames while it loads
            problems = [line.strip() for line in str(error).splitlines()[1:]]
        else:
            missing = [name for name in result.missing_keys if not is_inside(name, replaced)]
            problems = _lines("missing", [name for name in missing if not name.endswith("num_batches_tracked")])
            problems += _lines("unexpected", result.unexpected_keys)
    else:
        problems += _lines("missing", [name for name in own if name not in taken and not is_inside(name, replaced)])
        problems += _lines("unexpected", [name for name in taken if name not in own])
    if problems:
        rule = f"does not fit {type(module).__name__}:\n    " + "\n    ".join(problems)
        remedy = remedy or "choose the network that the weights were made for"
        raise ConfigError(key=key, value=source, rule=rule, remedy=remedy)
    return tuple(name for name in own if is_inside(name, replaced))


def _differs(layer: str, state: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """True if any tensor of submodule `layer` is absent from `state` or has another shape there."""
    return any(
        name not in state or (_are_tensors(tensor, state[name]) and state[name].shape != tensor.shape)
        for name, tensor in own.items()
        if is_inside(name, (layer,))
    )


def with_metadata(
    entries: Mapping[str, Any], state: Mapping[str, Any], own: Mapping[str, Any]
) -> "OrderedDict[str, Any]":
    """`entries` as a state dict with the layout versions of `state`, or those of `own` where it has none."""
    result = OrderedDict(entries)
    result._metadata = getattr(state, "_metadata", None) or getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    return result


def _misshaped(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    different = [
        f"{name} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in state.items()
        if name in own and _are_tensors(value, own[name]) and value.shape != own[name].shape
    ]
    return _lines("mis-shaped", different)


def _are_tensors(*values: Any) -> bool:
    """False for the extra state of a module, which may be anything."""
    return all(isinstance(value, torch.Tensor) for value in values)


def _lines(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return [f"{what} ({len(names)}): {shown}" + (f" and {more} more" if more > 0 else "")]


def load_checkpointed_weights(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Copy the state dict of a checkpoint into the network that its config builds: the same names and shapes.

    Everything is compared before anything is copied, so a failure leaves `module` as it was.

    Raises:
        WeightsError: a key is missing, unexpected, no tensor, or of another shape; each is told by name.
    """
    check_checkpointed_weights(module, state)
    module.load_state_dict(with_metadata(state, state, module.state_dict()))


def check_checkpointed_weights(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Compare names and shapes only; `module` may be on the meta device, where it takes no memory.

    Raises:
        WeightsError: as `load_checkpointed_weights`.
    """
    own = module.state_dict()
    wrong_kind = [name for name, value in state.items() if _are_tensors(own.get(name)) and not _are_tensors(value)]
    problems = _lines("no tensor", wrong_kind)
    problems += _misshaped(state, own)
    problems += _lines("missing", [name for name in own if name not in state])
    problems += _lines("unexpected", [name for name in state if name not in own])
    if problems:
        raise WeightsError(
            f"the checkpoint's weights do not fit {type(module).__name__}, the network that its config describes:\n    "
            + "\n    ".join(problems)
        )
