"""`CacheFolder`: caches on disk, one file per set of images, shared by the runs of a machine. Needs no torch.

KEY.images is a `SlotFile`. KEY.lock is locked as long as a run uses it, and its time of change says when one last did.
One lock on the folder covers looking up, making and removing; filling needs none. All locks go with their processes.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.atomic import atomic_file, remove_stale_files
from cvtrain.data.cache.room import free_disk
from cvtrain.data.cache.slots import RECORD_BYTES, DamagedCacheError, SharedFile, fcntl, read_header, write_header

log = logging.getLogger(__name__)

_IMAGES, _LOCK, _FOLDER_LOCK = ".images", ".lock", "folder.lock"


@dataclass(frozen=True)
class Entry:
    """A cache in a folder.

    Attributes:
        path: its file.
        num_bytes: length of the file.
        last_used: when a run last opened it, in seconds since 1970.
        is_used: a process has it open.
        description: what its header says; empty if it is damaged.
        damage: why it cannot be used; empty if it can.
    """

    path: Path
    num_bytes: int
    last_used: float
    is_used: bool
    description: Mapping[str, Any]
    damage: str = ""

    @property
    def key(self) -> str:
        """The fingerprint of its images."""
        return self.path.stem


class CacheFolder:
    """The caches in the folder `path`, which is made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """All caches, the one that was not used for the longest time first."""
        if not self.path.is_dir():
            return []
        entries = [self._look_at(path) for path in self.path.glob(f"*{_IMAGES}")]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.last_used)

    def remove(self, entries: list[Entry]) -> list[Entry]:
        """Remove those of `entries` that no process uses; returns these."""
        with self._locked():
            return [entry for entry in entries if self._remove(entry)]

    def room(self, keys: Collection[str], limit_bytes: int | None) -> int:
        """Bytes that the caches `keys` could have together, if those that nobody uses made room for them."""
        self.path.mkdir(parents=True, exist_ok=True)
        entries = self.entries()
        others = [entry for entry in entries if entry.key not in keys]
        removable = sum(entry.num_bytes for entry in others if not entry.is_used)
        kept = sum(entry.num_bytes for entry in others) - removable
        own = sum(entry.num_bytes for entry in entries) - kept - removable
        return max(0, min(self._limit(limit_bytes) - kept, free_disk(self.path) + removable + own))

    def make_room(self, wanted: Mapping[str, int], subjects: Collection[str], limit_bytes: int | None) -> int:
        """Remove what no run uses, as far as the caches of a run need: first what these take the place of, then the
        longest unused.

        Args:
            wanted: bytes that each cache of the run will come to, by key.
            subjects: what they are of, see `Fingerprint`: another cache of the same is out of date.
            limit_bytes: for all caches in the folder; None: half of what they have and the disk has free.

        Returns:
            Bytes that the run's caches may have together.
        """
        with self._locked():
            remove_stale_files(self.path)
            for entry in self._others(wanted):
                is_outdated = entry.damage or entry.description.get("subject") in subjects
                if is_outdated and self._remove(entry):
                    log.info("cache: removed %s: files or libraries have changed, or it is damaged", entry.path)
            for entry in self._others(wanted):
                if self._fits(wanted, limit_bytes):
                    break
                if self._remove(entry):
                    log.info("cache: removed %s, unused since %s, for room", entry.path, time.ctime(entry.last_used))
            others = sum(entry.num_bytes for entry in self._others(wanted))
            own = sum(map(self._own_bytes, wanted))
            return max(0, min(self._limit(limit_bytes) - others, free_disk(self.path) + own))

    def open(self, key: str, description: Mapping[str, Any], num_images: int) -> tuple[SharedFile, SharedFile]:
        """The file of cache `key`, made if it is not there or damaged, and a lock that keeps it from being removed.

        Args:
            description: for the header; `subject` says what a newer cache takes the place of.
            num_images: how many it is made for.

        Raises:
            OSError: the folder cannot be written or locked, or the disk is full.
        """
        with self._locked():
            use = SharedFile(os.open(self.path / f"{key}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
            fcntl.flock(use.descriptor, fcntl.LOCK_SH)
            file = self._open_whole(key) or self._create(key, description, num_images)
            os.utime(use.descriptor)
        return file, use

    # ------------------------------------------------------------------ under the lock of the folder

    def _open_whole(self, key: str) -> SharedFile | None:
        path = self.path / f"{key}{_IMAGES}"
        try:
            file = SharedFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        try:
            description, _ = read_header(file.descriptor)
            if description.get("key") != key:
                raise DamagedCacheError("it is of other images")
        except (DamagedCacheError, ValueError, KeyError, TypeError) as error:
            log.warning("cache: %s is damaged and made anew: %s", path, error)
            return None
        return file

    def _create(self, key: str, description: Mapping[str, Any], num_images: int) -> SharedFile:
        path = self.path / f"{key}{_IMAGES}"
        if free_disk(self.path) < num_images * RECORD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        content = {**description, "key": key, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with atomic_file(path, text=False) as file:
            write_header(file.fileno(), content, num_images)
        return SharedFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def _others(self, keys: Collection[str]) -> list[Entry]:
        return [entry for entry in self.entries() if entry.key not in keys]

    def _fits(self, wanted: Mapping[str, int], limit_bytes: int | None) -> bool:
        others = sum(entry.num_bytes for entry in self._others(wanted))
        own = {key: self._own_bytes(key) for key in wanted}
        total = sum(max(num_bytes, own[key]) for key, num_bytes in wanted.items())
        return others + total <= self._limit(limit_bytes) and total - sum(own.values()) <= free_disk(self.path)

    def _remove(self, entry: Entry) -> bool:
        """Remove a cache, unless a process uses it."""
        lock = self.path / f"{entry.key}{_LOCK}"
        with open(lock, "a") as file:  # noqa: PTH123
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            entry.path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        return True

    # ------------------------------------------------------------------ looking

    def _look_at(self, path: Path) -> Entry | None:
        lock = path.with_suffix(_LOCK)
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
        last_used = lock.stat().st_mtime if lock.exists() else status.st_mtime
        return Entry(path, status.st_size, last_used, _is_locked(lock), description, damage)

    def _own_bytes(self, key: str) -> int:
        path = self.path / f"{key}{_IMAGES}"
        return path.stat().st_size if path.exists() else 0

    def _limit(self, limit_bytes: int | None) -> int:
        if limit_bytes is not None:
            return limit_bytes
        used = sum(path.stat().st_size for path in self.path.glob(f"*{_IMAGES}"))
        return (used + free_disk(self.path)) // 2

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / _FOLDER_LOCK, "a") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/cvtrain`, or ~/.cache/cvtrain."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "cvtrain"
