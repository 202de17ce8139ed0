"""`DataWorkerError`: why batches stopped to come from data workers, and which settings help."""

import errno
import os
import re
import signal
from collections.abc import Sequence
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

# The texts of torch and Python for a batch that cannot be sent.
_TOO_MANY_FILES = re.compile("Too many open files|received 0 items of ancdata", re.IGNORECASE)
_NO_SHARED_MEMORY = re.compile("shared memory|No space left on device", re.IGNORECASE)


class DataWorkerError(RunError):
    """A data worker died, could not be started, or cannot send its batches.

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
class WorkerSettings:
    """The settings that a remedy names, with their values."""

    num_workers: int
    prefetch_batches: int
    batch_size: int

    @property
    def fewer(self) -> str:
        """The settings that need less memory, shared memory and open files when they are smaller."""
        return (
            f"data.num_workers (now {self.num_workers}; 0 makes batches in the main process), "
            f"data.prefetch_batches (now {self.prefetch_batches}) or data.batch_size (now {self.batch_size})"
        )


def explain_worker_error(
    error: Exception, exit_codes: Sequence[int], settings: WorkerSettings
) -> DataWorkerError | None:
    """Return the error in words, or None if it is another fault, such as an exception of the dataset.

    Args:
        error: raised while workers were started or a batch was waited for.
        exit_codes: of the workers that have ended, as `multiprocessing.Process.exitcode` has them.
        settings: named in the remedy.
    """
    text = " ".join(str(error).split())
    if text.startswith("Caught "):  # torch's words for an exception of the dataset
        return None
    if exit_codes:
        return explain_exit(min(exit_codes), settings)  # a signal rather than a worker that ended after it
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or _TOO_MANY_FILES.search(text):
        return DataWorkerError(
            f"too many open files: {_open_files_state()}",
            f"raise the limit before the start (ulimit -n 65535), or set a smaller {settings.fewer}\n"
            "a Dataset of your own must close the files that it opens",
        )
    if number == errno.ENOSPC or (isinstance(error, RuntimeError) and _NO_SHARED_MEMORY.search(text)):
        return DataWorkerError(
            f"not enough shared memory for batches: {_shared_memory_state()} ({text})",
            _shared_memory_remedy(settings),
        )
    if isinstance(error, OSError):
        return DataWorkerError(
            f"data workers could not be started: {text}",
            f"memory or the number of processes is limited (ulimit -u): set a smaller {settings.fewer}",
        )
    return None


def explain_exit(exit_code: int, settings: WorkerSettings) -> DataWorkerError:
    """Return the error for a worker that ended on its own, with -n for signal n."""
    if exit_code >= 0:
        return DataWorkerError(
            f"a data worker ended with exit code {exit_code}",
            "Python code or a library in it called exit; what it printed before stands above\n"
            "data.num_workers=0 runs the same code in the main process",
        )
    name = _signal_name(-exit_code)
    if name == "SIGKILL":
        return DataWorkerError(
            "a data worker was killed by the system (SIGKILL), most often because memory ran out",
            f"set a smaller {settings.fewer}, data.cache=disk or none if images are kept in memory, a smaller "
            "data.max_image_pixels if some are huge, or give the job more memory",
        )
    if name == "SIGBUS":
        return DataWorkerError(
            f"a data worker crashed (SIGBUS), as happens when shared memory is full: {_shared_memory_state()}",
            _shared_memory_remedy(settings) + "\nanother cause: a file that was cut while it was mapped into memory",
        )
    return DataWorkerError(
        f"a data worker was ended by {name}",
        "a library crashed in it, or another program sent the signal (a person, a batch system, a limit)\n"
        "data.num_workers=0 with python -X faulthandler shows where it crashes; data.reader=pillow decodes without "
        "OpenCV",
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


def _shared_memory_remedy(settings: WorkerSettings) -> str:
    return (
        f"give the container more (docker run --shm-size=2g; in Kubernetes an emptyDir of medium Memory at "
        f"{SHARED_MEMORY}), or set a smaller {settings.fewer}"
    )


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
