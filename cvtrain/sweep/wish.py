"""The user's wish that a search should end: signals, counted for its loop to see."""

import signal
import threading
from types import FrameType
from typing import Any

from cvtrain.runtime.signals import SIGNALS


class StopWish:
    """Inside `with`: Ctrl-C, SIGTERM and SIGUSR1 are counted; the loop looks at them."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopWish":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        self.count += 1

    @property
    def exit_code(self) -> int:
        return 0 if self.received is None else 128 + self.received.value
