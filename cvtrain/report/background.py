"""Drawing beside the training."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class BackgroundDrawing:
    """Draws once in a thread, when the run has begun to train.

    Not before: importing matplotlib takes 0.3 s of the interpreter, and the first step should not wait for it.

    Args:
        draw: writes the picture. What it raises becomes a warning: a picture is no reason to end a run.
        may_begin: asked from the thread, five times a second, until it says yes.
    """

    def __init__(self, draw: Callable[[], None], *, may_begin: Callable[[], bool]) -> None:
        self._draw = draw
        self._may_begin = may_begin
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Draw now if it has not begun yet; returns when the picture is there."""
        self._hurry.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._may_begin() and not self._hurry.wait(_POLL_SECONDS):
            pass
        try:
            self._draw()
        except Exception as error:
            log.warning("a picture could not be drawn: %s: %s", type(error).__name__, error)
