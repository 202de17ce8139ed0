"""Files that are either whole or absent: written beside their place, checked there, then renamed into it.

What is written beside is called `.NAME.HOST.PID.TOKEN.tmp`. A process that is killed leaves such a file behind, and
from the name a later one sees that its writer is gone: see `remove_temporary_files`.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

# Tells this process from an earlier one with the same id, as in a container that was restarted. A fork keeps it, and
# keeps its parent alive in the eyes of others only by the id, which differs.
_TOKEN = secrets.token_hex(4)
_TEMPORARY = re.compile(r"\..+\.(?P<host>[^.]+)\.(?P<pid>\d+)\.(?P<token>[0-9a-f]{8})\.tmp")
# No write takes so long: what another machine left untouched for this time has no writer any more.
_ABANDONED_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, text: bool = True, before_rename: Callable[[Path], None] | None = None
) -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    A reader, or a run killed in the middle, sees the old content or the new, never a part. The data is on disk
    (fsync) before the rename, and the rename is on disk at the end; that costs some milliseconds, so this is for files
    that are written now and then.

    Args:
        path: the file; missing folders are made.
        text: UTF-8 text with `\\n` line ends on every system; else bytes.
        before_rename: is given the path of the finished new file while the old one is still in its place. If it
            raises, the old file stays.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    options: dict[str, Any] = {"mode": "x", "encoding": "utf-8", "newline": ""} if text else {"mode": "xb"}
    try:
        with temporary.open(**options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename(temporary)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_dir(target.parent)


def temporary_path(target: Path) -> Path:
    """Return a new name beside `target` with the process and the machine that write it."""
    token = secrets.token_hex(2)
    return target.with_name(f".{target.name}.{token}.{_host()}.{os.getpid()}.{_TOKEN}.tmp")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's content, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_dir(folder: Path) -> None:
    """Put the names in `folder` on disk, so that a rename outlasts a loss of power."""
    if os.name == "nt":
        return  # Windows opens no folders; its file systems keep a journal of names
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network and user-space file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> list[Path]:
    """Remove what `atomic_write` left in `folder` when its process was killed; the paths that are gone now.

    Folders with such a name go too.

    A file is stale if its writer ran on this machine and does so no more. What another machine wrote, on a shared
    disk, is stale when nothing has touched it for a day. All else stays: somebody may be writing it.
    """
    removed = []
    for path in sorted(folder.glob(".*.tmp")):
        parts = _TEMPORARY.fullmatch(path.name)
        if parts is None:
            continue
        with contextlib.suppress(OSError):
            if _is_stale(path, parts["host"], int(parts["pid"]), parts["token"]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


def _is_stale(path: Path, host: str, pid: int, token: str) -> bool:
    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
        return True
    if host != _host():
        return False
    if pid == os.getpid():
        return token != _TOKEN
    return not _is_running(pid)


def _is_running(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end the process there; the age decides
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:40] or "host"
