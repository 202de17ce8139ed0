"""The one console that log lines and the live progress bar share, so that neither breaks the other."""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.text import display_message, display_text

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}


@functools.cache
def get_console() -> Console:
    """The shared rich console on stdout; rich is imported at the first call (40 ms)."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower().replace("-", "") != "utf8":
        # In a C or Latin-1 locale a letter that it lacks would end the line in an error.
        sys.stdout.reconfigure(errors="backslashreplace")

    class BrokenPipeSafeConsole(Console):
        def on_broken_pipe(self) -> None:
            """Continue without a reader, such as a `head` that has exited: rich would end the process."""
            self.quiet = True
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), sys.stdout.fileno())
            log.warning("the output is closed: from here on only the log file has it")

    return BrokenPipeSafeConsole(highlight=False, emoji=False)


def display_path(path: Path) -> str:
    """Return `path` as a person would type it here: relative, if it lies below the working folder."""
    absolute = path.absolute()
    return display_text(str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path))


def log_exception_to_file(error: BaseException) -> None:
    """Leave the error that ends the run in its log file too; the console gets it at the end, once."""
    info = None if isinstance(error, (ConfigError, RunError)) else (type(error), error, error.__traceback__)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(logging.LogRecord("cvtrain", logging.ERROR, __file__, 0, str(error), None, info))


def log_with_details(logger: logging.Logger, line: str, details: str) -> None:
    """Log one line, and for the log file alone `details`, such as a table, below it."""
    logger.info("%s", line, extra={"details": details})


class DisplayFormatter(logging.Formatter):
    """Format log lines without secrets and without control characters, later lines of a message indented.

    Args:
        fmt: as of `logging.Formatter`.
        with_details: add what `log_with_details` keeps for files.
    """

    def __init__(self, fmt: str | None = None, *, with_details: bool = False) -> None:
        super().__init__(fmt)
        self.with_details = with_details

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        details = getattr(record, "details", "") if self.with_details else ""
        return display_message(f"{text}\n{details}" if details else text)


class ConsoleHandler(logging.Handler):
    """Log lines through the shared console: above a live bar, without colour codes where stdout is no terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # soft_wrap: a line stays one line in files and pipes, whatever width rich guesses.
            get_console().print(
                self.format(record),
                style=LEVEL_STYLES.get(record.levelno),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        except Exception:
            self.handleError(record)
