"""`DataWorkerError`: what became of a data worker that died or can no longer be talked to, and which settings help."""

import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.errors import RunError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Programs that use select() cannot have more, and no loader needs more.
OPEN_FILES_WANTED = 65_536

SHARED_MEMORY = Path("/dev/shm")

_CRASHES = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")


class DataWorkerError(RunError):
    """A data worker died, or batches can no longer be sent from worker to main process.

    Attributes:
        cause: what happened, in words.
        remedy: which settings help, a line each.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause = cause
        self.remedy = remedy
        super().__init__(cause, remedy)

    def __str__(self) -> str:
        return "\n  ".join((self.cause, *self.remedy.splitlines()))


@dataclass(frozen=True)
class PoolSettings:
    """The settings that a remedy names, as they are."""

    num_workers: int
    prefetch_batches: int
    batch_size: int

    @property
    def fewer(self) -> str:
        """How to ask less of memory, shared memory and open files."""
        return (
            f"data.num_workers (now {self.num_workers}; 0 makes batches in the main process), "
            f"data.prefetch_batches (now {self.prefetch_batches}) or data.batch_size (now {self.batch_size})"
        )


def explain_death(exit_code: int, doing: str, settings: PoolSettings, *, out_of_memory_kills: int) -> DataWorkerError:
    """The error for a worker that ended on its own.

    Args:
        exit_code: as `multiprocessing.Process.exitcode` has it, -n for signal n.
        doing: what the worker was at, such as "while it read a.jpg for batch 3 of epoch 1"; may be empty.
        out_of_memory_kills: processes that the kernel killed for memory since the workers started; 0 if unknown.
    """
    doing = f" {doing}" if doing else ""
    if exit_code >= 0:
        return DataWorkerError(
            f"a data worker ended with exit code {exit_code}{doing}",
            "Python code or a library in it called exit; what it printed before stands above\n"
            "data.num_workers=0 runs the same code in the main process",
        )
    name = _signal_name(-exit_code)
    if name == "SIGKILL":
        said = (
            f"memory ran out (processes that the kernel killed for it since the workers started: {out_of_memory_kills})"
            if out_of_memory_kills
            else "most often because memory ran out, which the system log tells"
        )
        return DataWorkerError(
            f"a data worker was killed by the system ({name}){doing}: {said}",
            f"set a smaller {settings.fewer}, data.cache=disk or none if images are kept in memory, a smaller "
            "data.max_image_pixels if some are huge, or give the job more memory",
        )
    if name == "SIGBUS":
        return DataWorkerError(
            f"a data worker crashed ({name}){doing}, as happens when shared memory is full: {_shared_memory_state()}",
            shared_memory_remedy(settings) + "\nanother cause: a file that was cut while it was mapped into memory",
        )
    if name in _CRASHES:
        return DataWorkerError(
            f"a data worker crashed ({name}){doing}",
            "a library in it is at fault. If it is always the same file, remove it, or decode with data.reader=pillow\n"
            "data.num_workers=0 with python -X faulthandler shows where it happens",
        )
    return DataWorkerError(
        f"a data worker was ended by {name}{doing}",
        "another program sent the signal: a person, a batch system, or a limit on time or processes",
    )


def explain_transport(error: BaseException, settings: PoolSettings) -> DataWorkerError | None:
    """The error for a batch that could not be sent or received while all workers live; None if it is another fault."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "ancdata" in text:
        return DataWorkerError(
            f"too many open files: {_open_files_state()}. Each batch on its way from a data worker is one",
            f"raise the limit before the start (ulimit -n 65535), or set a smaller {settings.fewer}\n"
            "a Dataset of your own must close the files that it opens",
        )
    if "shared memory" in text or number == errno.ENOSPC:
        return DataWorkerError(
            f"no shared memory for a batch: {_shared_memory_state()} ({_one_line(text)})",
            shared_memory_remedy(settings),
        )
    if number in (errno.ENOMEM, errno.EAGAIN):
        return DataWorkerError(
            f"a data worker could not be started: {_one_line(text)}",
            f"memory or the number of processes is limited (ulimit -u): set a smaller {settings.fewer}",
        )
    if isinstance(error, (EOFError, ConnectionError, FileNotFoundError)) or "DataLoader worker" in text:
        return DataWorkerError(
            f"the connection to a data worker broke: {type(error).__name__}: {_one_line(text)}",
            "data.num_workers=0 makes batches in the main process",
        )
    return None


def shared_memory_remedy(settings: PoolSettings) -> str:
    """What helps where shared memory is short."""
    return (
        f"give the container more (docker run --shm-size=2g; in Kubernetes an emptyDir of medium Memory at "
        f"{SHARED_MEMORY}), or set a smaller {settings.fewer}"
    )


def raise_open_file_limit() -> None:
    """Allow this process as many open files as the system lets it, up to `OPEN_FILES_WANTED`.

    Most systems start programs with 1,024 for the sake of select(), and let them raise it by themselves.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS has a further limit of its own
            return


def count_out_of_memory_kills() -> int:
    """Processes that the kernel killed for memory since it started, in any control group; 0 where it does not tell."""
    return _read_counters(Path("/proc/vmstat")).get("oom_kill", 0)


def _read_counters(path: Path) -> Mapping[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines) if value.isdigit()}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shared_memory_state() -> str:
    try:
        state = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):
        return "its size is not known"
    free, total = (state.f_frsize * blocks / 1e6 for blocks in (state.f_bavail, state.f_blocks))
    return f"{SHARED_MEMORY} has {free:,.0f} of {total:,.0f} MB free"


def _open_files_state() -> str:
    if resource is None:
        return "the limit of this process is reached"
    return f"the limit of this process is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
