"""Signals that end a run: the loop stops at its next safe point; everywhere else they end the process at once."""

import contextlib
import os
import signal
import stat
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
# A SIGTERM reaches a process twice if a batch system sends it and its parent forwards it.
SECONDS_TOGETHER = 1.0
# For loggers to send their last figures after a signal has ended the run.
SECONDS_TO_CLOSE = 3.0


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
