"""`Entry`: a cache in a folder, as another process sees it. Needs no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.data.cache.store import DamagedCacheError, fcntl, read_header

IMAGES, LOCK = ".images", ".lock"


@dataclass(frozen=True)
class Entry:
    """A cache in a folder.

    Attributes:
        path: its file.
        num_bytes: length of the file.
        reserved: bytes that it will have, if a process is filling it.
        last_used: when a run last opened it, in seconds since 1970.
        is_used: a process has it open.
        description: the content of its header; empty if it is damaged.
        damage: why it cannot be used; empty if it can.
    """

    path: Path
    num_bytes: int
    last_used: float
    is_used: bool
    description: Mapping[str, Any]
    damage: str = ""
    reserved: int = 0

    @property
    def claimed(self) -> int:
        """Bytes that nothing else can have while this is there."""
        return max(self.num_bytes, self.reserved)

    @property
    def key(self) -> str:
        """The fingerprint of its images."""
        return self.path.stem


def read_entry(path: Path) -> Entry | None:
    """Read the cache at `path`; None if it is gone."""
    lock = path.with_suffix(LOCK)
    description: dict[str, Any] = {}
    damage = ""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            try:
                description, _ = read_header(file.fileno())
            except (DamagedCacheError, ValueError, KeyError, TypeError) as error:
                damage = str(error)
    except FileNotFoundError:
        return None  # removed by another process a moment ago
    try:
        last_used = lock.stat().st_mtime
    except FileNotFoundError:
        last_used = status.st_mtime
    is_used = _is_locked(lock)
    return Entry(path, status.st_size, last_used, is_used, description, damage, _reserved(lock) if is_used else 0)


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _reserved(lock: Path) -> int:
    """Return the bytes that the holder of the lock wrote into it; 0 if it wrote none, as older versions."""
    try:
        return max(0, int(lock.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return 0
