"""Python's garbage collector, which has nothing to do while libraries load."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collector inside. Objects without references are freed as ever; only cycles wait.

    Importing torch makes about a million objects that stay. Looking through them for garbage again and again took
    1.3 s of a start of 10 s.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
