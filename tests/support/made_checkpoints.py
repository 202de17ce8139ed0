"""Checkpoint files that tests make: good ones, and bad ones byte by byte with a right checksum."""

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

FOOTER_MARK = b"cvtrain-checkpoint blake2b-256 "


def make_state(step: int = 3, *, size: int = 6) -> dict[str, Any]:
    """A small whole state; every number of its weights is `step`."""
    return {
        "model": {"weight": torch.full((2, size), float(step)), "count": torch.tensor(step)},
        "average": None,
        "optimizer": {
            "state": {0: {"momentum": torch.full((2, size), float(step))}},
            "param_groups": [{"params": [0]}],
        },
        "config": {"seed": 0, "betas": [0.9, 0.999]},
        "classes": ["ants", "bees"],
        "preprocessing": {"mean": [0.5], "std": [0.25], "image_size": 8},
        "position": {"step": step, "epoch": 0, "batch": step},
    }


def seal(archive: bytes) -> bytes:
    """A zip archive without a comment, given the checksum that a checkpoint ends with."""
    assert archive.endswith(b"\0\0")
    digest = hashlib.blake2b(archive[:-2], digest_size=32).hexdigest().encode()
    comment = FOOTER_MARK + digest
    return archive[:-2] + len(comment).to_bytes(2, "little") + comment


def zipped(members: list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_STORED, only: str = "") -> bytes:
    """A zip archive of these names and contents; `only`: one member to compress, not all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            method = compression if only in ("", name) else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def members_of(data: bytes, storages: dict[str, bytes] | None = None) -> list[tuple[str, bytes]]:
    """The members of a torch archive with this data.pkl and these storages by key."""
    fixed = [("archive/data.pkl", data), ("archive/byteorder", b"little"), ("archive/version", b"3\n")]
    return fixed + [(f"archive/data/{key}", content) for key, content in (storages or {}).items()]


class StorageClaim:
    """What a pickle says of a storage, true or not."""

    def __init__(self, key: str, num_items: Any, *, kind: Any = torch.FloatStorage, device: Any = "cpu") -> None:
        self.identity = ("storage", kind, key, device, num_items)


class TensorClaim:
    """What a pickle says of a tensor, true or not."""

    def __init__(self, storage: Any, shape: Any, strides: Any, *, offset: Any = 0, hooks: Any = None) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict() if hooks is None else hooks)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class _ClaimPickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, StorageClaim) else None


def pickled(value: Any) -> bytes:
    """A data.pkl as torch.save writes it, with claims in the place of tensors and storages."""
    buffer = io.BytesIO()
    _ClaimPickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def whole(**entries: Any) -> dict[str, Any]:
    """The entries that a checkpoint has to have, without tensors, and `entries`."""
    state = make_state()
    del state["optimizer"]
    return {"format": "cvtrain-checkpoint", "format_version": 2, **state, "model": {}, **entries}


def write_sealed(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file that only its content can betray: a right archive with a right checksum around `data`."""
    path.write_bytes(seal(zipped(members_of(data, storages))))
    return path


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return sorted(entry.name for entry in folder.iterdir())
