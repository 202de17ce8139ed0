"""The verb `report`: a page about a finished run, or about several side by side."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.changed_settings import restore_config
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.resume import CONFIG
from cvtrain.config.schema.data import PATH_SETTINGS, DataConfig, DatasetConfig, HuggingFaceConfig
from cvtrain.config.schema.report import ReportConfig
from cvtrain.config.text import first_line
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import Concatenation, ImageSource
from cvtrain.report.comparison import write_comparison
from cvtrain.report.run_page import GENERATOR, REPORT, write_run_page
from cvtrain.report.run_results import RunResults, read_results
from cvtrain.runtime.console import display_path

log = logging.getLogger(__name__)

COMPARISON = "comparison.html"


def report(config: ReportConfig) -> Path:
    """Write the page and return its path.

    Raises:
        ConfigError: a run is not there, still goes on, or is incomplete or damaged; or the page would replace another
            file.
        RunError: the page cannot be written, or a file of a run holds something else than this version writes.
    """
    folders = [Path(run).expanduser() for run in config.runs]
    path = Path(config.output).expanduser() if config.output is not None else None
    path = path or (folders[0] / REPORT if len(folders) == 1 else Path(COMPARISON))
    _refuse_other_file(path)
    split = None if config.split is None else config.split.value
    runs = [read_results(folder, split) for folder in folders]
    check = None if config.check is None else Path(config.check).expanduser()
    images = [open_images(run) for run in runs]
    for run, source in zip(runs, images, strict=True):
        if isinstance(source, str):
            log.warning("%s: without pictures: %s", run.folder, source)
    lines: Sequence[str] = ()
    try:
        if len(runs) == 1:
            write_run_page(path, runs[0], images[0], check=check)
        else:
            lines = write_comparison(path, runs, images, check=check)
    except OSError as error:
        raise RunError(f"{error.filename or path} could not be written: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        listed = ", ".join(str(folder) for folder in folders)
        raise RunError(
            f"{listed}: summary.json, metrics.jsonl or config.yaml holds something else than a run writes: "
            f"{type(error).__name__}: {first_line(error)}\n  evaluate the run's checkpoint, and report that folder"
        ) from error
    for line in lines:
        log.info("%s", line)
    log.info("page: %s (%.2f MB)", display_path(path), path.stat().st_size / 1e6)
    return path


def open_images(results: RunResults) -> ImageSource | str:
    """Return the images of a run's split, or why there are none. Nothing is downloaded, and no class is imported."""
    try:
        data = _data_config(results)
        if isinstance(data, str):
            return data
        parts = build_splits(data, min_classes=1).parts()
    except (ConfigError, OSError, ImportError, yaml.YAMLError) as error:
        return first_line(error)
    if results.split == "all":
        return Concatenation(list(parts.values()))
    return parts.get(results.split, f"the data has no split {results.split} any more")


def _data_config(results: RunResults) -> DataConfig | str:
    """Return the data of a run, or of the run whose checkpoint was evaluated; why there is none."""
    saved: dict[str, Any] = results.config
    wanted: dict[str, Any] = {}
    if results.is_evaluation:
        wanted = {name: value for name, value in (saved.get("data") or {}).items() if value is not None}
        trained = Path(saved["checkpoint"]).parents[1] / CONFIG
        saved = yaml.safe_load(trained.read_text(encoding="utf-8"))
    data = restore_config(saved).data
    if isinstance(data, (HuggingFaceConfig, DatasetConfig)):
        return f"images of data={data.name} are not read again"
    changes = {name: value for name, value in wanted.items() if name in PATH_SETTINGS and hasattr(data, name)}
    for name in PATH_SETTINGS:  # relative ones start from where the run was started
        typed = changes.get(name, getattr(data, name, None))
        moved = Path(results.environment.get("folder", "")) / (typed or "")
        if typed and not Path(typed).exists() and moved.exists():
            changes[name] = str(moved)
    if hasattr(data, "download"):
        changes["download"] = False
    return replace(data, **changes)


def _refuse_other_file(path: Path) -> None:
    """Raise ConfigError if there is a file at `path` that is no page of this command."""
    if path.is_file():
        with path.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() in file.read(1000):
                return
        rule = "is there already, and no page of cvtrain report: it would be replaced"
        raise ConfigError("output", path, rule, "choose another name")
