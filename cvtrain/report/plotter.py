"""Drawing a picture without ending the run where that fails."""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Plotter:
    """Draws the pictures of a run; matplotlib is imported at the first one."""

    def draw(self, plot: Callable[..., None], *arguments: Any) -> None:
        """Call `plot`, which writes a picture, with `arguments`; an error is a warning in the log."""
        try:
            plot(*arguments)
        except Exception as error:
            log.warning("a picture could not be drawn: %s: %s", type(error).__name__, error)
