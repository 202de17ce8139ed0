"""The folder of a study: made, checked, and the log file in it."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from optuna.trial import FrozenTrial

from cvtrain.config.errors import ConfigError
from cvtrain.runtime.console import ConsoleHandler, DisplayFormatter, log_exception_to_file


def make_folder(folder: Path) -> None:
    """Make the folder of a study.

    Raises:
        ConfigError: it cannot be made.
    """
    with explained_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def explained_folder(folder: Path) -> Iterator[None]:
    """Turns the errors of a folder that nothing can be written to into a ConfigError."""
    try:
        yield
    except OSError as error:
        rule = f"nothing can be written there: {error.strerror}"
        raise ConfigError("output_root", folder, rule, "choose another folder: output_root=...") from error


def refuse_strange_folders(trials: Iterable[FrozenTrial], name: str, folder: Path) -> None:
    """Refuse to put trials into folders that another study has left.

    Raises:
        ConfigError: there is a folder of a trial that the study does not know.
    """
    known = {f"{trial.number:04d}" for trial in trials}
    found = {path.name for path in (folder / "trials").glob("*")} if (folder / "trials").is_dir() else set()
    if found - known:
        raise ConfigError(
            "sweep.name",
            name,
            f"{folder / 'trials'} has trials that its database does not know: {', '.join(sorted(found - known)[:5])}",
            "move the folder away, or begin another study: sweep.name=...",
        )


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Log lines go to the console and to a file meanwhile."""
    root = logging.getLogger()
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(DisplayFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file, ConsoleHandler()]
    level = root.level
    root.setLevel(logging.INFO)
    for name in ("alembic", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    except Exception as error:
        log_exception_to_file(error)
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        file.close()
        root.setLevel(level)
