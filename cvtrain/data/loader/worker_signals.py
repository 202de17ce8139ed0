"""Signals around data workers: which of them a worker hears, and how the main process learns of a worker's death."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar

# What the main process answers for its workers.
SIGNALS_OF_MAIN = (signal.SIGINT, signal.SIGTERM)


class DeathWatch:
    """A handler of SIGCHLD, in front of the one that was there, which calls a check while someone waits for workers.

    The check may raise; the exception then comes out of what is waiting. At other times the signal changes nothing.
    """

    _check: ClassVar[Callable[[], None] | None] = None

    def __init__(self, previous: Any) -> None:
        self.previous = previous

    @classmethod
    def install(cls) -> None:
        """Start to watch. Outside the main thread and on Windows, where one cannot, torch sees a death within 5 s."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGCHLD)
        if not isinstance(previous, cls):
            signal.signal(signal.SIGCHLD, cls(previous))

    @classmethod
    def begin(cls, check: Callable[[], None]) -> None:
        """Call `check` when a process ends. Signals reach the main thread only: elsewhere nothing begins."""
        if threading.current_thread() is threading.main_thread():
            cls._check = check

    @classmethod
    def end(cls) -> None:
        """Call nothing any more."""
        if threading.current_thread() is threading.main_thread():
            cls._check = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if callable(self.previous):
            self.previous(number, frame)
        if DeathWatch._check is not None:
            DeathWatch._check()


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Keep SIGINT and SIGTERM until the block ends, in which workers start: they ignore them, but not from birth.

    A forked process starts with the signals blocked that its parent blocks, and unblocks them in `ignore_signals`. The
    server that forks in Python 3.14 would keep them blocked for all that it starts.
    """
    if not hasattr(signal, "pthread_sigmask") or multiprocessing.get_start_method() != "fork":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_OF_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """In a worker: no ear for Ctrl-C and SIGTERM, which batch systems send to a whole job.

    They are the main process's business: it finishes its step, saves, and ends its workers without a traceback.
    """
    for number in SIGNALS_OF_MAIN:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_OF_MAIN)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the main process's handler, inherited by fork
