"""Checkpoints: one file with everything that a run needs to go on, or that a stranger needs to use the model.

A checkpoint is a dict of tensors and plain values, so `torch.load(path, weights_only=True)` reads it and
nothing in it can run code.
"""

from pathlib import Path
from typing import Any

import torch

from cvtrain.atomic import atomic_file
from cvtrain.config.errors import ConfigError

FORMAT = "cvtrain-checkpoint"
FORMAT_VERSION = 1
_REQUIRED = ("config", "classes", "preprocessing", "model")


class CheckpointError(ConfigError):
    """A file that cannot be used as a checkpoint; the message gives the path, the cause and the remedy."""

    def __init__(self, path: Path, rule: str, remedy: str = "") -> None:
        super().__init__(key="checkpoint", value=path, rule=rule, remedy=remedy)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a reader finds the old file or the new one, never a part.

    Tensors are written as they are: give CPU copies to load without the device they were on.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with atomic_file(path, text=False) as file:
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Runs no code from it, whatever it holds.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain's.
    """
    if not path.is_file():
        raise CheckpointError(path, "there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here: pickle, zip, runtime, key and value errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            path, f"cannot be read, it is damaged or holds more than tensors and plain values ({reason})"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            path,
            "not a checkpoint of cvtrain's",
            "to start training from a state dict use model.weights=PATH",
        )
    version = state.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            path, f"format version {version}; this cvtrain reads up to {FORMAT_VERSION}", "install a newer cvtrain"
        )
    missing = [name for name in _REQUIRED if name not in state]
    if missing:
        raise CheckpointError(path, f"incomplete, it lacks {', '.join(missing)}")
    return state


def to_cpu(value: Any) -> Any:
    """A copy of a nested state with every tensor on the CPU, sharing no memory with the original."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_cpu(item) for item in value)
    return value


def inference_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights that were evaluated: the average's where the run kept one, else the model's."""
    average = state.get("average")
    return average["model"] if average is not None else state["model"]


class CheckpointStore:
    """Keeps the checkpoints of a run in one folder."""

    def __init__(self, folder: Path, *, keep_last: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last

    def save(self, state: dict[str, Any], *, names: tuple[str, ...]) -> None:
        for name in names:
            save_checkpoint(self.folder / name, to_cpu(state))

    def wait(self) -> None:
        """Nothing is in flight."""

    def close(self) -> None:
        """Nothing is in flight."""


def newest_valid(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint of a folder."""
    path = folder / "last.pt"
    return (path, load_checkpoint(path), []) if path.exists() else None
