"""One process at a time in a run folder: a lock that the system releases when its holder dies."""

import contextlib
import errno
import functools
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from cvtrain.config.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
RUN_DIR = "hydra.run.dir"
# Longer than a run needs to save after a signal, and than Slurm waits between its SIGTERM and its SIGKILL.
LOCK_TIMEOUT_SECONDS = 40.0
POLL_SECONDS = 0.25
# Errors of file systems without locks: NFS without its lock service, some cluster and user-space file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: set[IO[str]] = set()


@contextlib.contextmanager
def run_lock(run_dir: Path, *, wait_seconds: float = 0.0, key: str = RUN_DIR) -> Iterator[None]:
    """Hold the run folder for as long as the block lasts, or the process lives.

    The lock is one of the system (flock), not the file: a file that a killed process left locks nothing. Processes
    forked meanwhile do not hold it. Over NFS it holds between machines where the server's lock service runs; on a file
    system without locks a warning is logged and nothing is locked.

    Args:
        run_dir: the run folder; made if it is not there.
        wait_seconds: how long to wait for another holder to end.
        key: the setting that names the folder, for errors.

    Raises:
        ConfigError: another process holds the folder; it is named. Or the folder cannot be made or written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (run_dir / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise unusable_folder(run_dir, error, key) from error
    with lock_file as file:
        if fcntl is None:
            yield
            return
        is_locked = _lock(file, run_dir, wait_seconds, key)
        if is_locked:
            _write_holder(file)
        _close_in_forks()
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)
            if is_locked:
                file.truncate(0)
                fcntl.flock(file, fcntl.LOCK_UN)


def is_held(run_dir: Path) -> bool:
    """True if the folder that `run_lock` holds is still there: nobody has deleted it meanwhile."""
    return (run_dir / LOCK_FILE).exists()


def holder_of(run_dir: Path) -> str | None:
    """Return a description of the other process that trains in a run folder; None if there is none, or no telling."""
    if fcntl is None:
        return None
    try:
        with (run_dir / LOCK_FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return _holder(file) if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
            fcntl.flock(file, fcntl.LOCK_UN)
    except OSError:  # never locked, or not for us to read
        pass
    return None


def unusable_folder(run_dir: Path, error: OSError, key: str = RUN_DIR) -> ConfigError:
    """The error for a run folder, or the folder of `key`, that cannot be made or written to."""
    return ConfigError(
        key=key,
        value=run_dir,
        rule=f"nothing can be written there: {error.strerror or error}",
        remedy="choose another folder: output_root=... for all runs, hydra.run.dir=... for this one"
        if key == RUN_DIR
        else f"choose another place: {key}=...",
    )


def _lock(file: IO[str], run_dir: Path, wait_seconds: float, key: str) -> bool:
    """Take the lock; False where the file system has none."""
    deadline = time.monotonic() + wait_seconds
    is_logged = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning("%s: this file system has no locks (%s); start no second process there", run_dir, error)
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            raise ConfigError(
                key=key,
                value=run_dir,
                rule=f"another process {'trains in this run folder' if key == RUN_DIR else 'writes it'}: "
                f"{_holder(file)}",
                remedy="wait for its end or end it, then resume; or leave out hydra.run.dir and resume, "
                "which starts a run in a folder of its own"
                if key == RUN_DIR
                else "wait for its end, or end it",
            )
        if not is_logged:
            is_logged = True
            log.info("%s is in use by %s; waiting up to %g s", run_dir, _holder(file), wait_seconds)
        time.sleep(POLL_SECONDS)


@functools.cache
def _close_in_forks() -> None:
    """Register once per process: a fork, such as a data worker that outlives a killed run, keeps no lock of it."""
    os.register_at_fork(after_in_child=_close_held)


def _close_held() -> None:
    for file in _held:
        file.close()
    _held.clear()


def _write_holder(file: IO[str]) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"slurm_job": job} if job else {}),
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _holder(file: IO[str]) -> str:
    """Describe the process that holds the lock, as far as the file names it."""
    try:
        file.seek(0)
        holder = json.loads(file.read())
        job = f", Slurm job {holder['slurm_job']}" if "slurm_job" in holder else ""
        return f"process {holder['pid']} on {holder['host']}{job}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown one"
