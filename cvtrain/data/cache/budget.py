"""The budget of a cache: memory or disk, and how much of it. Needs no torch."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.schema.data import DataCache

# Left free on a disk, for checkpoints and for others: a twentieth of it, at most 10 GiB.
_MAX_DISK_RESERVE = 10 * 2**30


@dataclass(frozen=True)
class Choice:
    """The kind of a cache and the reason for it.

    Attributes:
        kind: ram, disk or none.
        reason: in words, for the log.
    """

    kind: DataCache
    reason: str


def choose(wanted: DataCache, *, num_bytes: int, memory: int, disk_room: Callable[[], int]) -> Choice:
    """Choose a cache for images of `num_bytes` by `data.cache`, given `memory` and `disk_room()` bytes of room."""
    size = f"about {gib(num_bytes)}"
    if wanted is not DataCache.auto:
        return Choice(wanted, f"{size}, data.cache={wanted.value}")
    if num_bytes <= memory:
        return Choice(DataCache.ram, f"{size} of {gib(memory)} allowed")
    on_disk = disk_room()
    if num_bytes <= on_disk:
        return Choice(DataCache.disk, f"{size}, more than the {gib(memory)} of RAM allowed")
    return Choice(
        DataCache.none,
        f"{size} exceed the {gib(memory)} of RAM and the {gib(on_disk)} of the disk of data.cache_dir allowed",
    )


def memory_budget(limit_bytes: int | None, free_bytes: int) -> int:
    """Bytes of memory that a cache may take: half of what is free, or `limit_bytes` if nine tenths of it allow that."""
    return free_bytes // 2 if limit_bytes is None else min(limit_bytes, free_bytes // 10 * 9)


def split_budget(capacity: int, wanted: Sequence[int]) -> list[int]:
    """Divide `capacity` bytes in proportion to `wanted`."""
    total = max(1, sum(wanted))
    return [capacity * part // total for part in wanted]


def gib(num_bytes: int) -> str:
    """`0.08 GiB`."""
    return f"{num_bytes / 2**30:.2f} GiB"


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process could still take, within the limits of its containers and jobs (cgroups).

    Outside Linux: half of the machine's memory.
    """
    limits = [_machine_memory(proc), *_group_rooms(proc, cgroups)]
    return max(0, min(limits))


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk of `path`, less the reserve."""
    disk = os.statvfs(path)
    return max(0, disk.f_bavail * disk.f_frsize - disk_reserve(path))


def disk_reserve(path: Path) -> int:
    """Return the bytes of the disk of `path` that a cache must not use."""
    disk = os.statvfs(path)
    return min(_MAX_DISK_RESERVE, disk.f_blocks * disk.f_frsize // 20)


def _machine_memory(proc: Path) -> int:
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return _half_of_all()
    return _half_of_all()


def _half_of_all() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 0


def _group_rooms(proc: Path, cgroups: Path) -> list[int]:
    """Return the free bytes of each control group of this process, of cgroups version 2 and 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            rooms += _rooms_upwards(cgroups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms_upwards(cgroups / "memory", path, *files)
    return rooms


def _rooms_upwards(top: Path, path: str, limit_file: str, usage_file: str, inactive: str) -> list[int]:
    rooms = []
    folder = top / path.lstrip("/")
    for group in (folder, *folder.parents):
        if group == top.parent:
            break
        try:
            limit = int((group / limit_file).read_text(encoding="ascii"))
            usage = int((group / usage_file).read_text(encoding="ascii"))
            statistics = (group / "memory.stat").read_text(encoding="ascii").split()
        except (OSError, ValueError):  # "max" where there is no limit
            continue
        # The kernel reclaims file pages that were not used lately.
        reclaimable = int(statistics[statistics.index(inactive) + 1]) if inactive in statistics else 0
        rooms.append(limit - usage + reclaimable)
    return rooms
