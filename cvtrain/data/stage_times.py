"""Where the time of making a batch goes: seconds per stage, counted where the work is done.

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
        self.inner_seconds: list[float] = []
        self.seconds: dict[str, float] = {}


_open = _Open()


class stage:
    """Counts the seconds of its block for a stage; 1 us each. For one thread; others count nothing for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        _open.inner_seconds.append(0.0)
        self.began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.perf_counter() - self.began
        own = elapsed - _open.inner_seconds.pop()
        _open.seconds[self.name] = _open.seconds.get(self.name, 0.0) + own
        if _open.inner_seconds:
            _open.inner_seconds[-1] += elapsed


def take_seconds() -> dict[str, float]:
    """Seconds by stage since the last call in this thread."""
    taken, _open.seconds = _open.seconds, {}
    return taken
