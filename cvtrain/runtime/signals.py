"""Signals that end a run: the loop stops at its next safe point; everywhere else they end the process at once."""

import atexit
import contextlib
import gc
import io
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

# What clusters send ahead of the end of a job's time, SIGUSR2 through submitit; Windows has neither.
USER_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
# The terminal is gone (a lost ssh session); the soft limit of processor time is used up, which is repeated each second.
LIMIT_SIGNALS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGXCPU") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, signal.SIGTERM, *USER_SIGNALS, *LIMIT_SIGNALS)
# A SIGTERM reaches a process more than once where a batch system tells it, and its parent passes it on.
SECONDS_TOGETHER = 1.0
# What loggers may still take to send their last figures when a signal has ended the run.
SECONDS_TO_CLOSE = 3.0
# What the interpreter may take to end after that: libraries wait there for processes of their own.
SECONDS_TO_EXIT = 1.0

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def signals_to_handle() -> tuple[signal.Signals, ...]:
    """Return `SIGNALS` without a SIGHUP or SIGXCPU that is ignored, as `nohup` has it."""
    return tuple(
        number for number in SIGNALS if number not in LIMIT_SIGNALS or signal.getsignal(number) is not signal.SIG_IGN
    )


class StopSignals:
    """Inside `with`, handles the signals that end a run.

    Under `deferred()` the first one only sets `received`, for the loop to see, and a second one ends the process,
    unless it comes together with the first, is a SIGUSR1 or SIGUSR2 (which batch systems send beside a SIGTERM), or a
    SIGHUP or SIGXCPU. A second Ctrl-C always does.
    Elsewhere (while the run is built, while loggers wait for a network) a signal ends the process at once:
    KeyboardInterrupt for Ctrl-C, SystemExit with 128 + its number for the others.

    A SIGUSR1 or SIGUSR2 for which there was a handler before is handed on to it at the end of the block, when the run
    is saved: submitit's puts the job back into Slurm's queue.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._is_deferred = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in signals_to_handle():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)
        if self.received is not None and self.received in USER_SIGNALS and callable(previous.get(self.received)):
            signal.raise_signal(self.received)

    @contextlib.contextmanager
    def deferred(self) -> Iterator["StopSignals"]:
        """Inside, the first signal waits for the loop."""
        self._is_deferred = True
        try:
            yield self
        finally:
            self._is_deferred = False

    @contextlib.contextmanager
    def with_deadline(self, seconds: float = SECONDS_TO_CLOSE) -> Iterator[None]:
        """Inside, for what is not worth a wait: once a signal has come, it is repeated after `seconds`, as an order."""
        timer = threading.Timer(seconds, self._repeat)
        timer.daemon = True
        if self.received is not None and self._previous:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _repeat(self) -> None:
        assert self.received is not None
        if hasattr(signal, "pthread_kill"):
            # To the main thread itself, whose wait for a lock no other thread's signal ends.
            signal.pthread_kill(threading.main_thread().ident or 0, self.received)
        else:
            signal.raise_signal(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before, self.received = self.received, signal.Signals(number)
        if before is None:
            self._received_at = time.monotonic()
        if number in LIMIT_SIGNALS:
            leave_lost_terminal()
        is_the_same = number != signal.SIGINT and time.monotonic() - self._received_at < SECONDS_TOGETHER
        can_wait = is_the_same or number in LIMIT_SIGNALS or (number in USER_SIGNALS and number != before)
        if self._is_deferred and (before is None or can_wait):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 0 if self.received is None else 128 + self.received.value


def leave_lost_terminal() -> None:
    """Point stdout and stderr to nothing if their terminal is gone, where each write would raise an error."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):  # or to nothing already
                with Path(os.devnull).open("wb") as nothing:
                    os.dup2(nothing.fileno(), number)


def is_signal_exit(exit_code: int) -> bool:
    """True for the exit codes of processes that a signal ended."""
    return exit_code in {128 + number for number in SIGNALS}


class PromptExit:
    """Lets a process end without the interpreter's teardown, and one that a signal has ended be gone in a moment.

    The teardown after torch takes 0.5 s, seconds on a busy machine, and gloo's threads abort when it is done around
    them. Made before other libraries are imported, this has the last word at exit, once theirs is said; files that were
    left open are flushed. After a signal, libraries that wait at exit for processes or servers of their own are not
    waited for longer than `seconds`, and their processes are told to end.
    """

    def __init__(self, seconds: float = SECONDS_TO_EXIT) -> None:
        self.seconds = seconds
        self._exit_code: int | None = None
        self._by_signal = False
        self._others_came_first = getattr(atexit, "_ncallbacks", lambda: 0)() > 0
        atexit.register(self._leave)

    def end(self, exit_code: int) -> None:
        """To be called right before `sys.exit(exit_code)` without a signal: all that waits at exit has its time.

        Whose word would come after, such as a measurement of coverage that began with the interpreter, keeps it.
        """
        if not self._others_came_first:
            self._exit_code = exit_code

    def begin(self, exit_code: int, *, by_signal: bool = False) -> None:
        """To be called right before `sys.exit(exit_code)`.

        Args:
            by_signal: end by the signal that the code stands for. To a shell it is the same; a parent that waits for
                the process sees that it was stopped, and did not fail.
        """
        self._exit_code = exit_code
        self._by_signal = by_signal
        if by_signal:
            signal.signal(exit_code - 128, signal.SIG_DFL)
        others = [thread for thread in threading.enumerate() if not thread.daemon]
        others.remove(threading.main_thread())
        threading.Thread(target=self._leave_in_time, args=(others,), name="prompt exit", daemon=True).start()

    def _leave_in_time(self, others: list[threading.Thread]) -> None:
        for thread in others:  # one that writes a checkpoint finishes it
            thread.join()
        time.sleep(self.seconds)
        for process in child_processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGTERM)
        self._leave()

    def _leave(self) -> None:
        if self._exit_code is None:
            return
        # By their types alone: an object may do anything when it is asked for its class.
        opened = [found for found in gc.get_objects() if issubclass(type(found), _WRITERS)]
        for stream in (*opened, sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if self._by_signal:
            os.kill(os.getpid(), self._exit_code - 128)
        os._exit(self._exit_code)


def child_processes() -> list[int]:
    """Ids of the processes that this one started and that run; Linux only, elsewhere none."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name, in parentheses, may hold anything
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                children.append(int(path.parent.name))
    return children
