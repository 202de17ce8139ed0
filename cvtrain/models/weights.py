"""State dicts: reading them from files, and loading them with every difference told by name."""

import argparse
import copy
import pickle
import shlex
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.text import first_line
from cvtrain.models.heads import is_inside

# Where training programs keep the state dict in a larger file. An EMA comes first, as in timm: those weights were
# evaluated. `ema` and `average` are cvtrain's, `state_dict_ema` timm's, `model_ema` torchvision's.
ENTRIES = ("ema", "average", "state_dict_ema", "model_ema", "ema_state_dict", "model", "state_dict", "model_state_dict")
# Entries of an EMA that are no weights.
_EMA_COUNTERS = ("n_averaged", "module.n_averaged")
_MAX_PREFIX_PARTS = 4
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class FileWeights:
    """A state dict from a file; `source` names the file and what was taken from it, for the log and for errors."""

    state: Mapping[str, Any]
    source: str


class WeightsError(RunError, ValueError):
    """A state dict that does not fit its network; the message names the keys and shapes."""


def describe_preprocessing(
    mean: Sequence[float], std: Sequence[float], interpolation: str | None, crop_fraction: float | None
) -> str:
    """Return what weights expect as a log line has it: `mean [0.5], std [0.5], bicubic, crop fraction 0.875`."""
    parts = [
        f"{name} [{', '.join(f'{value:.4g}' for value in values)}]" for name, values in (("mean", mean), ("std", std))
    ]
    parts += [interpolation] if interpolation else []
    parts += [f"crop fraction {crop_fraction:.4g}"] if crop_fraction else []
    return ", ".join(parts)


def read_state(path: Path, *, entry: str | None = None, key: str = "model.weights") -> FileWeights:
    """Read the state dict of a local file to the CPU; nothing in the file can run code.

    Args:
        path: .pt, .pth, .bin or .ckpt (torch.save) or .safetensors: a state dict, or a larger file that holds one.
        entry: where it stands in a larger file; None: the first of `ENTRIES` that is there.
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
        raise _unreadable(path, key, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ConfigError(key=key, value=path, rule=f"is no safetensors file: {first_line(error)}") from error
    return _select_entry(content, path, entry, key)


def _unreadable(path: Path, key: str, error: Exception) -> ConfigError:
    """Name the classes that a file needs besides tensors, where that is why it cannot be read."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # whatever a damaged file raises
        classes = []
    if not classes:
        return ConfigError(
            key=key,
            value=path,
            rule=f"cannot be read as tensors and plain values: {first_line(error)}",
            remedy="save only the state dict: torch.save(network.state_dict(), path)",
        )
    shown = ", ".join(classes[:_NAMES_SHOWN])
    command = (
        f"import torch; c = torch.load({str(path)!r}, weights_only=False); "
        f"torch.save(c.get('state_dict', c), {str(path.with_stem(path.stem + '_weights'))!r})"
    )
    return ConfigError(
        key=key,
        value=path,
        rule=f"cannot be read as tensors and plain values: it holds objects of {shown}",
        remedy="save only the state dict: torch.save(network.state_dict(), path); for a file that you trust, since "
        f"this runs its code:\npython -c {shlex.quote(command)}",
    )


def _read_torch(path: Path) -> Any:
    # timm keeps the command line's arguments beside the weights; a Namespace runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _select_entry(content: Any, path: Path, entry: str | None, key: str) -> FileWeights:
    found = _entries(content)
    if entry is not None:
        if entry not in found:
            there = ", ".join(found) or "none"
            raise ConfigError(
                key="model.weights_entry", value=entry, rule=f"{path} has no state dict there; it has {there}"
            )
        return FileWeights(found[entry], f"{path} (entry {entry})")
    if _is_state(content):
        return FileWeights(content, str(path))
    chosen = next((name for name in ENTRIES if name in found), None)
    if chosen is None:
        shown = ", ".join(str(name) for name in list(content)[:_NAMES_SHOWN]) if isinstance(content, Mapping) else ""
        raise ConfigError(
            key=key,
            value=path,
            rule=f"holds no state dict but a {type(content).__name__}" + (f" of {shown}" if shown else ""),
            remedy=f"name where it is: model.weights_entry={next(iter(found))}"
            if found
            else "save only the state dict: torch.save(network.state_dict(), path)",
        )
    others = [name for name in found if name != chosen]
    more = f"; model.weights_entry={others[0]} for the others" if others else ""
    return FileWeights(found[chosen], f"{path} (entry {chosen}{more})")


def _entries(content: Any) -> dict[str, Mapping[str, Any]]:
    """Return the state dicts of a larger file by the name of their entry."""
    found = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        # cvtrain's EMA has its weights one step deeper, beside the number of updates.
        state = value["model"] if isinstance(value, Mapping) and isinstance(value.get("model"), Mapping) else value
        if _is_state(state):
            has_counters = any(key in state for key in _EMA_COUNTERS)
            kept = {key: item for key, item in state.items() if key not in _EMA_COUNTERS} if has_counters else state
            found[str(name)] = kept
    return found


def strip_prefix(weights: FileWeights, module: nn.Module) -> FileWeights:
    """Return the weights without what stands before every name of `module`: `net.`, `model.`, `module.`, ...

    Training programs keep the network in a larger module; names outside it, such as a loss's, are left out.
    """
    own = module.state_dict().keys()
    names = list(weights.state)
    candidates = {""}
    for name in names:
        parts = name.split(".")
        candidates.update(".".join(parts[:count]) + "." for count in range(1, min(len(parts), _MAX_PREFIX_PARTS)))
    matches = {
        prefix: sum(name[len(prefix) :] in own for name in names if name.startswith(prefix)) for prefix in candidates
    }
    prefix = max(sorted(candidates, key=len), key=lambda candidate: matches[candidate])
    if not prefix or matches[prefix] <= matches[""]:
        return weights
    kept = {name[len(prefix) :]: value for name, value in weights.state.items() if name.startswith(prefix)}
    left_out = len(names) - len(kept)
    more = f", {left_out} entries outside it left out" if left_out else ""
    return FileWeights(with_metadata(kept, {}, {}), f"{weights.source}, prefix {prefix} removed{more}")


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
    # torch keeps them as an attribute of the dict, which a copy has too.
    versioned = next((each for each in (state, own) if isinstance(each, OrderedDict) and vars(each)), None)
    if versioned is None:
        return OrderedDict(entries)
    result = copy.copy(versioned)
    result.clear()
    result.update(entries)
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
