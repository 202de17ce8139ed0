"""Processes of trials: one per trial, a few at a time, each with its share of the cores and GPUs.

On Linux they are forked from multiprocessing's fork server, which has the libraries loaded: a trial starts within
milliseconds, and inherits nothing from another trial.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from types import TracebackType
from typing import Any

from cvtrain.config.errors import RunError
from cvtrain.loggers.trial_channel import open_trial_channel
from cvtrain.runtime.signals import SIGNALS

# What a trial imports. The fork server starts no thread and touches no GPU: neither survives a fork.
PRELOADED = (
    "torch", "torchvision.transforms.v2", "rich.progress", "rich.table", "cvtrain.cli.main", "cvtrain.cli.hydra_job",
    "cvtrain.cli.multi_process", "cvtrain.commands.train",
)  # fmt: skip
DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
# How long the loop waits where nothing happens, before it looks at the clock and at signals.
TICK_SECONDS = 0.5
# How long trials may take to save when their search ends; how long after a second Ctrl-C.
SAVE_SECONDS, HURRY_SECONDS = 60.0, 5.0
# Exit code of a process whose fork server was killed (multiprocessing.popen_forkserver).
UNKNOWN_EXIT = 255


@dataclass(frozen=True)
class TrialCommand:
    """What a trial's process gets: its command line, working folder, environment, and the file that it prints into."""

    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    output: str
    threads: int
    metric: str


def run_trial(command: TrialCommand, connection: Connection) -> None:
    """Run a trial in this process, as an ordinary `cvtrain` command."""
    become_trial(command)
    open_trial_channel(connection, command.metric)
    import torch

    from cvtrain.cli.main import main

    torch.set_num_threads(command.threads)
    main(list(command.arguments), prevalidated=True)


def become_trial(command: TrialCommand) -> None:
    """Make this process like a program of its own, which saves and ends when its search is killed."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the search alone
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with Path(command.output).open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ.clear()
    os.environ.update(command.environment)
    os.chdir(command.folder)
    sys.argv = ["cvtrain", *command.arguments]
    search = multiprocessing.parent_process()
    assert search is not None

    def save_without_search() -> None:
        search.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=save_without_search, name="search", daemon=True).start()


@dataclass(frozen=True)
class Evaluation:
    """A trial has evaluated, and waits for `Worker.answer`."""

    worker: "Worker"
    trial: int
    step: int
    value: float


@dataclass(frozen=True)
class TrialEnd:
    """A trial's process has ended. `exit_code` is negative for a signal."""

    trial: int
    exit_code: int


class Worker:
    """Runs one trial at a time.

    Args:
        context: `forkserver` or `spawn`.
        threads: of a trial's arithmetic.
        gpus: CUDA_VISIBLE_DEVICES of its trials; None: as it is.
    """

    def __init__(self, context: Any, *, threads: int, gpus: str | None) -> None:
        self.trial: int | None = None
        self._context = context
        self._environment = {THREADS: str(threads)} | ({} if gpus is None else {DEVICES: gpus})
        self._threads = threads
        self._process: Any = None
        self._connection: Connection | None = None

    def start(self, trial: int, *, arguments: Sequence[str], output: Path, metric: str) -> None:
        """Start a trial.

        Raises:
            RunError: no process can be started.
        """
        environment = {**os.environ, **self._environment}
        command = TrialCommand(arguments, str(Path.cwd()), environment, str(output.absolute()), self._threads, metric)
        self._connection, connection = self._context.Pipe()
        process = self._context.Process(target=run_trial, args=(command, connection), name=f"trial {trial}")
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise RunError(f"the process of a trial cannot be started: {error}") from error
        finally:
            connection.close()
        self.trial, self._process = trial, process

    def answer(self, *, stop: bool) -> None:
        """Let the trial that has evaluated continue, or end."""
        with contextlib.suppress(OSError):  # a trial that was killed shows when it is waited for
            if self._connection is not None:
                self._connection.send(stop)

    def sources(self) -> list[Any]:
        """What becomes ready when the trial has evaluated or ended."""
        if self._process is None:
            return []
        return [self._process.sentinel] if self._connection is None else [self._connection, self._process.sentinel]

    def read(self, source: Any) -> Evaluation | TrialEnd | None:
        """Return the event of one of the sources."""
        assert self.trial is not None
        if source is not self._connection:
            return self._end(self.trial)
        try:
            step, value = self._connection.recv()
        except (EOFError, OSError):
            self.disconnect()
            return None
        return Evaluation(self, self.trial, step, value)

    def _end(self, trial: int) -> TrialEnd:
        self._process.join()
        code = self._process.exitcode
        is_unknown = code == UNKNOWN_EXIT and _is_running(self._process.pid)
        self.disconnect()
        if is_unknown:
            self.stop(signal.SIGTERM)
        self._process.close()
        self.trial = self._process = None
        if is_unknown:
            raise RunError("the process that starts trials was killed; the same command resumes the search")
        return TrialEnd(trial, code)

    def disconnect(self) -> None:
        """Close the connection, on which the trial may wait for an answer."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to the trial; SIGKILL to every process that it has started, too."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)

    def wait(self, seconds: float) -> None:
        """Wait for the trial's end, then kill it."""
        if self._process is not None:
            self._process.join(max(0.0, seconds))
            if self._process.exitcode is None:
                self.stop(signal.SIGKILL)
                self._process.join()


class WorkerPool:
    """All workers of a search on this machine. At the end of the block, trials that still run save and end.

    Args:
        count: number of workers.
        cores: of this machine.
        warm: fork trials from a process that has the libraries loaded (Linux); else each loads them itself.
    """

    def __init__(self, count: int, *, cores: int, warm: bool) -> None:
        self._count = count
        self._threads = threads_per_worker(count, cores)
        is_forked = warm and sys.platform == "linux"
        self._context: Any = multiprocessing.get_context("forkserver" if is_forked else "spawn")
        if is_forked:
            self._context.set_forkserver_preload(list(PRELOADED))
            start_fork_server(self._threads)
        self.workers: list[Worker] = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """A second signal (KeyboardInterrupt, SystemExit) leaves trials less time to save."""
        is_hurried = kind is not None and not issubclass(kind, Exception)
        deadline = time.monotonic() + (HURRY_SECONDS if is_hurried else SAVE_SECONDS)
        try:
            self.stop()
            for worker in self.workers:
                worker.disconnect()
            for worker in self.workers:
                worker.wait(deadline - time.monotonic())
        finally:
            for worker in self.workers:
                worker.wait(0)

    def open(self) -> None:
        """Make the workers, with a share of the GPUs each.

        Raises:
            RunError: the libraries cannot be loaded.
        """
        gpus: list[str | None] = [None] * self._count
        if self._count > 1:
            with ProcessPoolExecutor(1, mp_context=self._context) as executor:
                try:
                    gpus = share_gpus(executor.submit(count_gpus).result(), self._count)
                except (OSError, EOFError, RuntimeError, ImportError) as error:
                    raise RunError(f"the GPUs cannot be counted: {error}") from error
        self.workers = [Worker(self._context, threads=self._threads, gpus=share) for share in gpus]

    def stop(self) -> None:
        """Let all trials save and end."""
        for worker in self.workers:
            worker.stop(signal.SIGTERM)

    def wait(self, timeout: float = TICK_SECONDS) -> Iterator[Evaluation | TrialEnd]:
        """Wait up to `timeout` seconds for trials to evaluate or end."""
        workers = {source: worker for worker in self.workers for source in worker.sources()}
        for source in wait_for_any(list(workers), timeout):
            worker = workers[source]
            event = worker.read(source) if source in worker.sources() else None
            if event is not None:
                yield event


def start_fork_server(threads: int) -> None:
    """Start the fork server, which imports while the database is opened.

    Signals that end a run are blocked in it: they may reach every process of a terminal or a job, and the trials are
    its children. It ends with the search.

    Args:
        threads: OMP_NUM_THREADS of the server, which libraries read when they are loaded.
    """
    resource_tracker.ensure_running()  # it unblocks signals
    before = os.environ.get(THREADS)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.environ[THREADS] = str(threads)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ[THREADS]
        if before is not None:
            os.environ[THREADS] = before


def count_gpus() -> int:
    """Return the number of GPUs that a process sees; in a process of its own, since CUDA does not survive a fork."""
    import torch

    return torch.cuda.device_count()


def threads_per_worker(workers: int, cores: int) -> int:
    """Return each worker's share of the cores, at least 1, and at most OMP_NUM_THREADS."""
    share = max(1, cores // workers)
    limit = os.environ.get(THREADS, "")
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


def share_gpus(count: int, workers: int) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of each worker: GPUs of its own where there are enough, else a shared one.

    Args:
        count: GPUs that a process sees here, CUDA_VISIBLE_DEVICES of this process included.
        workers: how many share them.
    """
    names = [name for name in os.environ.get(DEVICES, "").split(",") if name] or [str(n) for n in range(count)]
    names = names[:count]
    if not names:
        return [None] * workers
    if len(names) < workers:
        return [names[number % len(names)] for number in range(workers)]
    ends = [len(names) * number // workers for number in range(workers + 1)]
    return [",".join(names[start:end]) for start, end in itertools.pairwise(ends)]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
