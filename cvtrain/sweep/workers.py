"""The processes that start trials: one per worker, each with its share of the cores and GPUs."""

import contextlib
import itertools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.config.errors import RunError
from cvtrain.loggers.trial_channel import VARIABLE

PROGRAM = ("-m", "cvtrain.sweep.trial_worker")
DEVICES = "CUDA_VISIBLE_DEVICES"
# How long the loop sleeps where nothing happens: then it looks at the clock, and at the user's wish to stop.
TICK_SECONDS = 0.5
# How long trials that a search leaves in the middle may take to save.
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Event:
    """What a worker or its trial told.

    Kinds: ready; started (`value`: process id); ended (`value`: exit code, negative for a signal); evaluated (`row`:
    trial, step, epoch, value), which waits for `Worker.answer`; lost: the worker itself is gone.
    """

    worker: "Worker"
    kind: str
    value: int = 0
    row: dict[str, Any] | None = None


class Worker:
    """One process that starts trials, and the two lines to it.

    Args:
        number: from 0.
        threads: cores of its share, which is how many threads a trial's arithmetic takes.
        warm: fork trials from the process, else start them as programs.
        overrides: of all trials, to be composed once ahead of them.
    """

    def __init__(self, number: int, *, threads: int, warm: bool, overrides: Sequence[str]) -> None:
        self.number = number
        self.threads = threads
        self.gpus: str | None = None
        self.trial: int | None = None
        self.pid: int | None = None
        self._control, control = socket.socketpair()
        self._channel, self._channel_of_trials = socket.socketpair()
        self._unread = {self._control: b"", self._channel: b""}
        self._trial_fd = self._channel_of_trials.fileno()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, *PROGRAM, str(control.fileno()), str(self._trial_fd)],
            pass_fds=[control.fileno(), self._trial_fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        control.close()
        self._channel_of_trials.close()
        if warm:
            self._send(self._control, {"load": list(overrides)})

    @property
    def lines(self) -> tuple[socket.socket, socket.socket]:
        return self._control, self._channel

    def start(self, trial: int, *, arguments: Sequence[str], output: Path, metric: str) -> None:
        """Start a trial."""
        channel = {"fd": self._trial_fd, "trial": trial, "metric": metric}
        environment = {VARIABLE: json.dumps(channel), "OMP_NUM_THREADS": str(self.threads)}
        if self.gpus is not None:
            environment[DEVICES] = self.gpus
        self.trial, self.pid = trial, None
        order = {
            "trial": trial,
            "arguments": list(arguments),
            "environment": environment,
            "output": str(output),
            "threads": self.threads,
        }
        self._send(self._control, order)

    def answer(self, trial: int, *, stop: bool) -> None:
        """Let a trial that told a value go on, or tell it to stop."""
        self._send(self._channel, {"trial": trial, "stop": stop})

    def signal(self, number: signal.Signals, *, all_processes: bool = False) -> None:
        """Send a signal to the trial, or to it and everything that it started."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if all_processes else os.kill)(self.pid, number)

    def read(self, line: socket.socket) -> list[Event]:
        """What one of the lines has to say."""
        try:
            received = line.recv(1 << 16)
        except ConnectionError:
            received = b""
        if not received:
            return [Event(self, "lost", self._process.wait())]
        *rows, self._unread[line] = (self._unread[line] + received).split(b"\n")
        return [self._event(json.loads(row)) for row in rows]

    def _event(self, message: dict[str, Any]) -> Event:
        if "ready" in message:
            return Event(self, "ready", message["gpus"])
        if "started" in message:
            self.pid = message["started"]
            return Event(self, "started", message["started"])
        if "ended" in message:
            self.trial = self.pid = None
            return Event(self, "ended", message["ended"], message)
        return Event(self, "evaluated", row=message)

    def _send(self, line: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a worker that is gone shows when its line is read
            line.sendall((json.dumps(message) + "\n").encode())

    def hang_up(self) -> None:
        """Close the lines: the process ends, once a trial that still runs has saved and ended."""
        for line in self.lines:
            line.close()

    def is_done(self) -> bool:
        """True if nothing is lost when it is killed: it has no trial in hand, or has ended."""
        return self.trial is None or self._process.poll() is not None

    def kill(self) -> None:
        """End the process and its trial at once."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL, all_processes=True)
            self._process.kill()
        self._process.wait()


class WorkerPool:
    """All workers of a search on this machine, and one place to wait for what they tell.

    Args:
        count: how many.
        cores: of this machine, for them to share.
        warm: see `Worker`.
        overrides: see `Worker`.
        is_hurried: True once trials are not to save any more, at the end of the block.
    """

    def __init__(
        self, count: int, *, cores: int, warm: bool, overrides: Sequence[str], is_hurried: Callable[[], bool]
    ) -> None:
        self._is_hurried = is_hurried
        self._selector = selectors.DefaultSelector()
        self.warm = warm and sys.platform == "linux"
        self.workers: list[Worker] = []
        threads = threads_per_worker(count, cores)
        for number in range(count):
            worker = Worker(number, threads=threads, warm=self.warm, overrides=overrides)
            self.workers.append(worker)
            for line in worker.lines:
                self._selector.register(line, selectors.EVENT_READ, worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for worker in self.workers:
            worker.hang_up()
        deadline = time.monotonic() + SAVE_SECONDS
        while not all(worker.is_done() for worker in self.workers):
            if self._is_hurried() or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for worker in self.workers:
            worker.kill()

    def wait_until_ready(self) -> None:
        """Wait until the workers have loaded what they need, and share out the GPUs.

        Raises:
            RunError: a worker ended instead.
        """
        waiting = len(self.workers) if self.warm else 0
        gpus = 0
        while waiting:
            for event in self.wait(timeout=600):
                if event.kind == "lost":
                    raise RunError(f"a process that starts trials could not load what they need (exit {event.value})")
                waiting -= event.kind == "ready"
                gpus = max(gpus, event.value)
        for worker, share in zip(self.workers, share_gpus(gpus, len(self.workers)), strict=True):
            worker.gpus = share

    def wait(self, timeout: float = TICK_SECONDS) -> list[Event]:
        """What was told by now; waits for a word up to `timeout` seconds."""
        events = []
        for key, _ in self._selector.select(timeout):
            found = key.data.read(key.fileobj)
            if any(event.kind == "lost" for event in found):
                for line in key.data.lines:
                    with contextlib.suppress(KeyError):
                        self._selector.unregister(line)
            events += found
        return events


def threads_per_worker(workers: int, cores: int) -> int:
    """Each worker's share of the cores, at least 1; fewer if OMP_NUM_THREADS says so."""
    share = max(1, cores // workers)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else share


def share_gpus(count: int, workers: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker: its own GPUs where there are enough, else one that it shares with others.

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
