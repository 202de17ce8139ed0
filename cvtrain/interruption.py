"""Ctrl-C, SIGTERM and SIGUSR1: a wish that the loop grants at its next safe point, an order everywhere else."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# SIGUSR1 is what clusters send ahead of the end of a job's time; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignal:
    """Inside `with`, handles the signals that end a run.

    Under `deferred()` the first one only sets `received`, for the loop to see, and a second one is not waited for.
    Elsewhere (while the run is assembled, while loggers wait for a network) a signal ends the process at once:
    KeyboardInterrupt for Ctrl-C, SystemExit with 128 + its number for the others.

    Outside the main thread, where Python lets nobody handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_deferred = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator["StopSignal"]:
        """Inside, the first signal waits for the loop."""
        self._is_deferred = True
        try:
            yield self
        finally:
            self._is_deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        self.received = signal.Signals(number)
        if self._is_deferred and is_first:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1."""
        return 0 if self.received is None else 128 + self.received.value
