"""Where a network saw what it wrongly answered: small pictures of its mistakes under their heat maps, by name."""

import base64
import binascii
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.html_page import encode_thumbnail


def overlay_path(plot: Path) -> Path:
    """Return the file of the overlays of a plot of mistakes: plots/mistakes_val.json."""
    return plot.with_suffix(".json")


def write_overlays(path: Path, names: Sequence[str], overlays: Sequence[np.ndarray]) -> None:
    """Write (S, S, 3) uint8 pictures by the names of their images, as WebP in base64, atomically."""
    pairs = zip(names, overlays, strict=True)
    content = {name: base64.b64encode(encode_thumbnail(overlay)).decode() for name, overlay in pairs}
    with atomic_write(path) as file:
        json.dump(content, file)


def read_overlays(path: Path) -> dict[str, np.ndarray]:
    """Return what `write_overlays` wrote, as (H, W, 3) uint8 by name; nothing if the file is not there or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: _decode(encoded) for name, encoded in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, binascii.Error, Image.DecompressionBombError):
        return {}


def _decode(encoded: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)), formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGB"))
