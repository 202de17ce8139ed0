"""Signals that end a sweep, counted for its loop to see."""

import signal
import threading
from types import FrameType
from typing import Any

from cvtrain.runtime.signals import LIMIT_SIGNALS, leave_lost_terminal, signals_to_handle


class StopWish:
    """Count the signals that end a run inside `with`; a SIGHUP or SIGXCPU after another signal does not count."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopWish":
        if threading.current_thread() is threading.main_thread():
            for number in signals_to_handle():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in LIMIT_SIGNALS:
            leave_lost_terminal()
        if self.received is None or number not in LIMIT_SIGNALS:
            self.count += 1
        self.received = self.received or signal.Signals(number)

    @property
    def exit_code(self) -> int:
        return 0 if self.received is None else 128 + self.received.value
