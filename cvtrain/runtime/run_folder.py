"""A command that is refused leaves no run folder behind."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from cvtrain.config.errors import ConfigError
from cvtrain.config.resume import CHECKPOINTS, METRICS, SUMMARY

EXIT_REFUSED = 2


@contextlib.contextmanager
def removed_if_refused(folder: Path, output_root: str) -> Iterator[None]:
    """Remove the run folder if the block ends with a ConfigError, or an exit with status 2, before it has results.

    A folder that had files in it before stays as it is. `output_root` and what is above it as far as it was typed, such
    as `runs` of `runs/evaluate`, go too where they are empty afterwards.
    """
    is_new = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except (ConfigError, SystemExit) as error:
        is_refused = isinstance(error, ConfigError) or error.code == EXIT_REFUSED
        if is_refused and is_new and not _has_results(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _remove_empty_parents(folder.absolute(), Path(output_root).expanduser())
        raise


def _has_results(folder: Path) -> bool:
    metrics, checkpoints = folder / METRICS, folder / CHECKPOINTS
    return (
        (folder / SUMMARY).exists()
        or (metrics.is_file() and metrics.stat().st_size > 0)
        or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    )


def _remove_empty_parents(folder: Path, output_root: Path) -> None:
    top = output_root if output_root.is_absolute() else Path.cwd().joinpath(*output_root.parts[:1])
    for parent in folder.parents:
        if not parent.is_relative_to(top) or parent == Path.cwd():
            return
        try:
            parent.rmdir()
        except OSError:  # something else is in it
            return
