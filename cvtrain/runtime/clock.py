"""The clock that every duration is measured with."""

import time


def now() -> float:
    """Seconds on a clock that only moves forward."""
    return time.perf_counter()
