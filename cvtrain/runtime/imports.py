"""Python's collector of garbage, kept out of the way of large imports."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around large imports, such as torch's: nothing is collected inside, and what came is never looked through again.

    Modules stay, so that looking through them frees nothing. It takes a sixth of the time of `import torch`, as much
    again when the process ends, and writes to memory that worker processes share with this one.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
        if len(sys.modules) > num_modules:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
