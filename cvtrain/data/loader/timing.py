"""Where the time of making a batch goes: seconds per stage, and of a core, counted where the work is done.

A batch carries its seconds to the main process, from a worker as from this process. A stage within a stage counts for
itself and not for the outer one, so that the stages of a batch add up to the time that it took.
"""

import threading
import time
from types import TracebackType

# In the order of the work. `read`: bytes of a file, or an image out of the cache; `decode`: to pixels, and shrunk for
# the cache; `cache`: putting them there; `augment`: augmentation or resize; `collate`: the rest of making the batch.
STAGES = ("read", "decode", "cache", "augment", "collate")


class _Open(threading.local):
    """The stages that are open in this thread, and what was counted in it."""

    def __init__(self) -> None:
        self.inner: list[tuple[float, float]] = []  # seconds and core seconds of the stages within each open one
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}


_open = _Open()


class stage:
    """Counts the seconds of its block for a stage; 2 us each. For one thread; others count nothing for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        _open.inner.append((0.0, 0.0))
        # The core's clock is a call of the system, which likes to give the core to another process then. Asked for
        # inside of what the other clock measures, that wait counts for the stage that used the core up.
        self.began = time.perf_counter()
        self.cpu_began = time.thread_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu_elapsed = time.thread_time() - self.cpu_began
        elapsed = time.perf_counter() - self.began
        inner, cpu_inner = _open.inner.pop()
        _open.seconds[self.name] = _open.seconds.get(self.name, 0.0) + elapsed - inner
        _open.cpu_seconds[self.name] = _open.cpu_seconds.get(self.name, 0.0) + cpu_elapsed - cpu_inner
        if _open.inner:
            inner, cpu_inner = _open.inner[-1]
            _open.inner[-1] = (inner + elapsed, cpu_inner + cpu_elapsed)


def take_seconds() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by stage since the last call in this thread, and those in which a core was at work on it."""
    taken = _open.seconds, _open.cpu_seconds
    _open.seconds, _open.cpu_seconds = {}, {}
    return taken
