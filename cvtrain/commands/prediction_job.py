"""What a command of `predict` leaves so that a later one can go on: its images and its settings."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.prediction_paths import JOB, explanations_folder, parse_part
from cvtrain.config.schema.predict import PredictConfig
from cvtrain.config.serialize import to_plain
from cvtrain.data.sources.listing import Listing, list_images
from cvtrain.data.sources.path_table import PathTable
from cvtrain.report.json_file import write_json
from cvtrain.runtime.files import atomic_write, file_sha256
from cvtrain.runtime.lock import LOCK_FILE

log = logging.getLogger(__name__)

PATHS = "paths.npz"
# What the rows depend on: a stopped command goes on only with the same.
_IDENTITY = (
    *(
        "source",
        "path_column",
        "part",
        "top_k",
        "threshold",
        "embeddings",
        "explain",
        "explain_method",
        "tta",
        "batch_size",
        "rows_per_part",
    ),
    *("precision", "data.reader", "data.max_image_pixels", "data.image_size"),
)


@dataclass(frozen=True)
class Job:
    """The images of one table, as they were found when its first command began.

    Attributes:
        rows: (N,) int64 places in the source of the images of a `part`; None: all are taken.
    """

    listing: Listing
    rows: np.ndarray | None


def job_identity(config: PredictConfig, path: Path) -> dict[str, Any]:
    """Return the settings that the rows depend on, and the digest of the checkpoint's file."""
    plain: dict[str, Any] = to_plain(config)
    values = {key: plain["data"][key[5:]] if key.startswith("data.") else plain[key] for key in _IDENTITY}
    return {"checkpoint": file_sha256(path), **values}


def new_job(config: PredictConfig, table: Path, folder: Path) -> Job:
    """List the images of `source`, or of its `part`.

    Raises:
        ConfigError: there are none.
    """
    sorted_images = config.sort_into and Path(config.sort_into).expanduser()
    own = tuple(str(each) for each in (table, folder, explanations_folder(table), sorted_images) if each)
    listing = list_images(config.source, path_column=config.path_column, own=own)
    for line in listing.left_out:
        log.info("%s", line)
    number, count = parse_part(config.part)
    if config.part is None:
        return Job(listing, None)
    rows = np.flatnonzero(listing.paths.hashes(0) % count == number - 1)
    log.info("part %s: %s of %s images", config.part, f"{len(rows):,}", f"{len(listing.paths):,}")
    return Job(replace(listing, paths=listing.paths.take(rows)), rows)


def save_job(folder: Path, job: Job, identity: dict[str, Any]) -> None:
    """Keep what a later command needs to go on; job.json comes last and makes it valid."""
    for path in folder.iterdir():
        if path.name != LOCK_FILE:
            path.unlink()
    paths = job.listing.paths
    rows = np.zeros(0, np.int64) if job.rows is None else job.rows
    with atomic_write(folder / PATHS, text=False) as file:
        np.savez(file, buffer=paths.buffer, offsets=paths.offsets, rows=rows)
    write_json(folder / JOB, {"settings": identity, "root": job.listing.root})


def resume_job(folder: Path, identity: dict[str, Any]) -> Job:
    """Return the job that a stopped command left.

    Raises:
        ConfigError: it had other settings, or its record is damaged.
    """
    try:
        record = json.loads((folder / JOB).read_text(encoding="utf-8"))
        settings, root = dict(record["settings"]), str(record["root"])
        with np.load(folder / PATHS, allow_pickle=False) as saved:
            paths, rows = PathTable(saved["buffer"], saved["offsets"]), saved["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "output", folder, f"the record of the stopped command is damaged: {error}", "overwrite=true starts again"
        ) from error
    differing = [key for key, value in identity.items() if settings.get(key) != value]
    if differing:
        key = differing[0]
        was = "was another file" if key == "checkpoint" else f"was {settings.get(key)}"
        raise ConfigError(
            key,
            identity[key] if key != "checkpoint" else "another",
            f"{was} in the command whose rows are in {folder}",
            "give the same settings to go on; overwrite=true starts again, output=... writes elsewhere",
        )
    return Job(Listing(root, paths), None if identity["part"] is None else rows)
