"""A sweep worker: starts trials one after another (`python -m cvtrain.sweep.trial_worker CONTROL_FD TRIAL_FD`).

It loads what a training run loads, and then forks a process for each trial, which so starts within milliseconds and
takes nothing with it that another trial has left. Nothing here may start a thread or touch a GPU: neither survives a
fork.

The search speaks to it over the socket CONTROL_FD in lines of JSON; TRIAL_FD is the trials' own line to the search.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1


class TrialWorker:
    """Starts the trials that it is told to, one at a time, and tells how each ended."""

    def __init__(self, control: socket.socket, trial_fd: int) -> None:
        self.control = control
        self.trial_fd = trial_fd
        self.warm = False
        self._unread = b""
        self._child: int | None = None
        self._trial = -1
        # A child that ends wakes `select` through this pair; a handler has to be there for the signal to be noted.
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wake, False)
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Work until the search closes the line; a trial that runs then is told to save and end."""
        while True:
            readable, _, _ = select.select([self.control.fileno(), self._wake], [], [])
            if self._wake in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self.control.fileno() in readable and not self._read_orders():
                break
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a search that is gone closes the other line as well
            self.control.sendall((json.dumps(message) + "\n").encode())

    def _read_orders(self) -> bool:
        """Carry out what the search has sent; False when it is gone."""
        try:
            received = self.control.recv(1 << 16)
        except ConnectionError:  # it was killed, with something of ours unread
            return False
        if not received:
            return False
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "load" in order:
                self.warm = True
                self.tell(ready=True, gpus=load(order["load"]))
            else:
                self._start(order)
        return True

    def _start(self, order: dict[str, Any]) -> None:
        self._trial = order["trial"]
        self._child = self._fork(order) if self.warm else self._spawn(order)
        self.tell(trial=self._trial, started=self._child)

    def _fork(self, order: dict[str, Any]) -> int:
        child = os.fork()
        if child == 0:
            self._end_me_with_worker()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            run_trial(order)
        return child

    def _end_me_with_worker(self) -> None:
        """In a trial's process: be told to save and end should this worker be killed, which could not tell it."""
        if self._prctl is not None:
            self._prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def _spawn(self, order: dict[str, Any]) -> int:
        """Start a trial as a program of its own, which loads everything itself."""
        with Path(order["output"]).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "cvtrain", *order["arguments"]],
                env={**os.environ, **order["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[self.trial_fd],
                preexec_fn=self._end_me_with_worker,  # safe: this process has one thread
                start_new_session=True,
            )
        return process.pid

    def _reap(self) -> None:
        if self._child is None:
            return
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid:
            self._child = None
            self.tell(trial=self._trial, ended=os.waitstatus_to_exitcode(status))


def load(overrides: list[str]) -> int:
    """Import what runs import, compose a config once so that grammars and files are read, and count the GPUs.

    Args:
        overrides: of all trials.
    """
    import torch  # noqa: F401
    from torchvision.transforms import v2  # noqa: F401

    from cvtrain.config.composer import Composer
    from cvtrain.config.load import check_command
    from cvtrain.config.schema.root import register_schemas

    register_schemas()
    with contextlib.suppress(Exception):  # with --config-dir it may not compose alone; a trial has all of it
        check_command(Composer("train"), overrides, False)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the trials
    return count_gpus()


def count_gpus() -> int:
    """GPUs of this machine, counted in a process of their own: CUDA, once started, does not survive a fork."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0
        with contextlib.suppress(Exception):
            import torch

            count = torch.cuda.device_count()
        os.write(told, str(count).encode())
        os._exit(0)
    os.close(told)
    os.waitpid(child, 0)
    with os.fdopen(answer, "rb") as reader:
        return int(reader.read() or 0)


def run_trial(order: dict[str, Any]) -> NoReturn:
    """Be the trial: an ordinary `cvtrain` command, in a session of its own, that prints into a file."""
    try:
        os.setsid()
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ.update(order["environment"])
        import torch

        from cvtrain.cli.main import main

        torch.set_num_threads(order["threads"])
        sys.argv = ["cvtrain", *order["arguments"]]
        main(order["arguments"], prevalidated=True)
    except SystemExit:
        raise  # through `serve`, to the normal end of a process
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def _note(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor does the work."""


def main() -> None:
    control_fd, trial_fd = (int(argument) for argument in sys.argv[1:3])
    TrialWorker(socket.socket(fileno=control_fd), trial_fd).serve()
    os._exit(0)  # nothing of what was loaded has anything to put in order


if __name__ == "__main__":
    main()
