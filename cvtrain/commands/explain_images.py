"""Overlays of predicted images: `explain=true` of the verb `predict`."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch

from cvtrain.classifier import Classifier
from cvtrain.report.prediction_table import Row
from cvtrain.runtime.files import atomic_write, remove_temporary_files

_UNSAFE = re.compile(r"[^\w.-]+")
_OWN = re.compile(r"\d{7,}_.*\.jpg")
_QUALITY = 90
NOTHING: dict[str, Any] = {"explanation": None, "hot_drop": None, "random_drop": None, "meaningful": None}


@dataclass(frozen=True)
class Overlays:
    """Writes an overlay for each image into a folder beside the table.

    Args:
        folder: made with the first overlay.
        classifier: explains.
        method: as `Classifier.explain` takes it.
    """

    folder: Path
    classifier: Classifier
    method: str

    def start(self, *, resumes: bool) -> None:
        """Remove what a killed command had begun to write; and all overlays, unless this command goes on with them."""
        if not self.folder.is_dir():
            return
        remove_temporary_files(self.folder)
        for path in [] if resumes else self.folder.iterdir():
            if _OWN.fullmatch(path.name):
                path.unlink()

    def write(self, row: Row, pixels: torch.Tensor, label: int) -> dict[str, Any]:
        """Write the overlay of (C, S, S) uint8 `pixels` for class id `label`, and return its columns of the table.

        Args:
            row: has `row`, the image's place in the source, and `path`.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        found = self.classifier.explain_pixels(pixels, label, self.method)
        name = f"{row['row']:07d}_{_UNSAFE.sub('_', PurePath(row['path']).stem)[:60]}.jpg"
        with atomic_write(self.folder / name, text=False) as file:
            found.overlay().save(file, "JPEG", quality=_QUALITY)
        drops = found.deletion
        return {
            "explanation": f"{self.folder.name}/{name}",
            "hot_drop": None if drops is None else drops.hot_drop,
            "random_drop": None if drops is None else drops.random_drop,
            "meaningful": found.is_meaningful,
        }
