"""Seconds of making a batch by stage, measured where the work is done.

A batch carries its seconds to the main process, from a worker as from this process. A stage within another one counts
for itself and not for the outer one, so that the stages of a batch add up to the time that it took.
"""

import threading
import time
from types import TracebackType

# In the order of the work. `read`: bytes of a file, or an image out of the cache; `decode`: to pixels, and shrunk for
# the cache; `cache`: storing them there; `augment`: augmentation or resize; `collate`: the rest of making the batch.
STAGES = ("read", "decode", "cache", "augment", "collate")


class _ThreadTimes(threading.local):
    def __init__(self) -> None:
        self.inner: list[float] = []  # seconds of the stages within each open one
        self.seconds: dict[str, float] = {}


_times = _ThreadTimes()


class stage:
    """Count the seconds of its block, in this thread, for a stage; about 1 us each."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        _times.inner.append(0.0)
        self.began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.perf_counter() - self.began
        inner = _times.inner.pop()
        _times.seconds[self.name] = _times.seconds.get(self.name, 0.0) + elapsed - inner
        if _times.inner:
            _times.inner[-1] += elapsed


def take_seconds() -> dict[str, float]:
    """Return seconds by stage since the last call in this thread."""
    taken, _times.seconds = _times.seconds, {}
    return taken
