"""Logging as it was, after commands in this process."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Close the handlers that a command adds to the root logger, and put back those that were there, and the levels."""
    root, ours = logging.getLogger(), logging.getLogger("cvtrain")
    handlers, level, our_level = list(root.handlers), root.level, ours.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        ours.setLevel(our_level)
