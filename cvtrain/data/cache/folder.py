"""`CacheFolder`: caches on disk, one file per set of images, shared by the runs of a machine. Needs no torch.

KEY.images is an `ImageFile`. KEY.lock is locked while a run uses the cache, and its time of change is that of the last
use; it holds the bytes that the cache will have, so that others built at the same time leave it that room.
One lock on the folder covers looking up, making and removing; filling needs none. All locks go with their processes.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cvtrain.data.cache.budget import free_disk
from cvtrain.data.cache.entry import IMAGES, LOCK, Entry, read_entry
from cvtrain.data.cache.store import RECORD_BYTES, DamagedCacheError, SharedFile, fcntl, read_header, write_header
from cvtrain.runtime.files import atomic_write, remove_temporary_files

log = logging.getLogger(__name__)

_FOLDER_LOCK = "folder.lock"


class CacheFolder:
    """The caches in the folder `path`, which is made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holds_lock = False

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock of the folder: no other process looks up, makes or removes caches inside the block."""
        if self._holds_lock:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / _FOLDER_LOCK, "a") as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            self._holds_lock = True
            try:
                yield
            finally:
                self._holds_lock = False

    def entries(self) -> list[Entry]:
        """Return all caches, least recently used first."""
        if not self.path.is_dir():
            return []
        entries = [read_entry(path) for path in self.path.glob(f"*{IMAGES}")]
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.last_used)

    def remove(self, entries: list[Entry]) -> list[Entry]:
        """Remove those of `entries` that no process uses, and return them."""
        with self.exclusive():
            return [entry for entry in entries if self._remove(entry)]

    def room(self, keys: Collection[str], limit_bytes: int | None) -> int:
        """Bytes that the caches `keys` could have together, if those that nobody uses made room for them."""
        self.path.mkdir(parents=True, exist_ok=True)
        entries = self.entries()
        others = [entry for entry in entries if entry.key not in keys]
        removable = sum(entry.num_bytes for entry in others if not entry.is_used)
        kept = sum(entry.claimed for entry in others if entry.is_used)
        own = sum(entry.num_bytes for entry in entries if entry.key in keys)
        return max(0, min(self._limit(limit_bytes) - kept, self._free(others) + removable + own))

    def most_room(self, limit_bytes: int | None) -> int:
        """Upper bound of `room` for any keys."""
        self.path.mkdir(parents=True, exist_ok=True)
        return max(0, min(self._limit(limit_bytes), free_disk(self.path) + self._bytes_there()))

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
        with self.exclusive():
            remove_temporary_files(self.path)
            for entry in self._others(wanted):
                is_outdated = entry.damage or entry.description.get("subject") in subjects
                if is_outdated and self._remove(entry):
                    log.info("cache: removed %s: files or libraries have changed, or it is damaged", entry.path)
            for entry in self._others(wanted):
                if self._fits(wanted, limit_bytes):
                    break
                if self._remove(entry):
                    log.info("cache: removed %s, unused since %s, for room", entry.path, time.ctime(entry.last_used))
            others = self._others(wanted)
            own = sum(map(self._own_bytes, wanted))
            claimed = sum(entry.claimed for entry in others)
            return max(0, min(self._limit(limit_bytes) - claimed, self._free(others) + own))

    def open(
        self, key: str, description: Mapping[str, Any], num_images: int, num_bytes: int = 0
    ) -> tuple[SharedFile, SharedFile]:
        """The file of cache `key`, made if it is not there or damaged, and a lock that keeps it from being removed.

        Args:
            description: for the header; a newer cache of the same `subject` replaces this one.
            num_images: how many it is made for.
            num_bytes: that it is going to have, about.

        Raises:
            OSError: the folder cannot be written or locked, or the disk is full.
        """
        with self.exclusive():
            lock = self.path / f"{key}{LOCK}"
            use = SharedFile(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), lock)
            fcntl.flock(use.descriptor, fcntl.LOCK_SH)
            file = self._open_whole(key) or self._create(key, description, num_images)
            os.pwrite(use.descriptor, f"{num_bytes:<20}".encode(), 0)  # of one length: none of an older one is left
            os.utime(use.descriptor)
        return file, use

    # ------------------------------------------------------------------ under the lock of the folder

    def _open_whole(self, key: str) -> SharedFile | None:
        path = self.path / f"{key}{IMAGES}"
        try:
            file = SharedFile.open(path)
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
        path = self.path / f"{key}{IMAGES}"
        if free_disk(self.path) < num_images * RECORD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        content = {**description, "key": key, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        with atomic_write(path, text=False) as file:
            write_header(file.fileno(), content, num_images)
        return SharedFile.open(path)

    def _others(self, keys: Collection[str]) -> list[Entry]:
        return [entry for entry in self.entries() if entry.key not in keys]

    def _fits(self, wanted: Mapping[str, int], limit_bytes: int | None) -> bool:
        others = self._others(wanted)
        claimed = sum(entry.claimed for entry in others)
        own = {key: self._own_bytes(key) for key in wanted}
        total = sum(max(num_bytes, own[key]) for key, num_bytes in wanted.items())
        return claimed + total <= self._limit(limit_bytes) and total - sum(own.values()) <= self._free(others)

    def _free(self, others: list[Entry]) -> int:
        """Return the free bytes of the disk that are not reserved for one of `others`."""
        return free_disk(self.path) - sum(entry.claimed - entry.num_bytes for entry in others)

    def _remove(self, entry: Entry) -> bool:
        """Remove a cache, unless a process uses it."""
        lock = self.path / f"{entry.key}{LOCK}"
        with open(lock, "a") as file:  # noqa: PTH123
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            entry.path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        return True

    def _own_bytes(self, key: str) -> int:
        path = self.path / f"{key}{IMAGES}"
        return path.stat().st_size if path.exists() else 0

    def _limit(self, limit_bytes: int | None) -> int:
        if limit_bytes is not None:
            return limit_bytes
        return (self._bytes_there() + free_disk(self.path)) // 2

    def _bytes_there(self) -> int:
        return sum(entry.num_bytes for entry in self.entries())


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/cvtrain`, or ~/.cache/cvtrain."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "cvtrain"
