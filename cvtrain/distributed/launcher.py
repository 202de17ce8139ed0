"""`trainer.devices=N`: the processes of a run on this machine, started and looked after without torchrun. No torch."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from cvtrain.config.machine import usable_cores
from cvtrain.runtime.signals import SIGNALS, leave_lost_terminal, signals_to_handle

# For the others to end once one has failed, before they are killed.
SECONDS_TO_END = 30.0
_POLL_SECONDS = 0.05
_PARENT_PIPE = "CVTRAIN_PARENT_PIPE"


def launch(arguments: Sequence[str], num_processes: int, variables: Mapping[str, str]) -> int:
    """Run `python -m cvtrain ARGUMENTS` in as many processes, and return how they ended.

    `variables` of their environment are set besides those of this process.

    Signals are forwarded to all of them, once each. When one fails, the others get SIGTERM; its exit code counts.
    """
    processes: list[subprocess.Popen[bytes]] = []
    reading, writing = os.pipe()  # the processes see that this one is gone when its end of the pipe closes
    try:
        with _forwarded_signals(processes) as received:
            port = _free_port()
            for rank in range(num_processes):
                if received:  # it has not reached the process that was being started
                    _send(processes, received[0])
                    break
                processes.append(
                    _start(arguments, {**_environment(rank, num_processes, port, reading), **variables}, reading)
                )
            exit_code = _wait(processes)
            return 128 + received[0] if len(processes) < num_processes else exit_code
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        os.close(reading)
        os.close(writing)


def exit_with_parent() -> None:
    """In a process that `launch` started: end as by SIGTERM when the process that did so is gone."""
    pipe = os.environ.pop(_PARENT_PIPE, None)
    if pipe is None:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(int(pipe), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _start(arguments: Sequence[str], environment: dict[str, str], pipe: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "cvtrain", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=(pipe,),
        start_new_session=True,  # Ctrl-C at the terminal comes through this process, once
    )


def _environment(rank: int, num_processes: int, port: int, pipe: int) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes)))
    return environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _PARENT_PIPE: str(pipe),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(processes: "Sequence[subprocess.Popen[bytes]]") -> int:
    """Wait for all; return 0, or the exit code of the first that failed: 128 + N for one that signal N has killed."""
    exit_code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        failed = next((process.returncode for process in processes if process.poll()), 0)
        if failed and not exit_code:
            exit_code, deadline = failed, time.monotonic() + SECONDS_TO_END
            report_killed(processes)
            _send(processes, signal.SIGTERM)
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    exit_code = exit_code or next((process.returncode for process in processes if process.returncode), 0)
    return exit_code if exit_code >= 0 else 128 - exit_code


def report_killed(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Print which processes were killed by a signal that they could not handle; the others cannot report it."""
    for rank, process in enumerate(processes):
        code = process.returncode or 0
        if code < 0 and -code not in SIGNALS:
            hint = ", most often by the system because memory ran out" if -code == signal.SIGKILL else ""
            print(
                f"error: process {rank} of {len(processes)} was killed by {signal.Signals(-code).name}{hint}",
                file=sys.stderr,
            )


def _send(processes: "Sequence[subprocess.Popen[bytes]]", number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


@contextlib.contextmanager
def _forwarded_signals(processes: "list[subprocess.Popen[bytes]]") -> Iterator[list[int]]:
    """Forward signals to `processes` inside the block; yields the numbers of those received."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        leave_lost_terminal()
        received.append(number)
        _send(processes, number)

    is_main_thread = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, forward) for number in signals_to_handle()} if is_main_thread else {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
