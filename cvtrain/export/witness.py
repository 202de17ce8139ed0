"""Both sides of the proof: what cvtrain says of the images, and what a fresh process with the exported model says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cvtrain.config.errors import RunError
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.sources.source import FileSource, ImageSource
from cvtrain.export import prove
from cvtrain.export.proof import Answers

# Of the images, as many pixels are compared as fit into this many bytes.
_MAX_PIXEL_BYTES = 256 << 20


@dataclass(frozen=True)
class Witness:
    """The images of a proof, and what cvtrain says of them.

    Attributes:
        paths: files of the images, N of them.
        labels: (N,) class ids; None: unknown.
        unreadable: lines on images that could not be read, which are left out.
    """

    paths: list[str]
    labels: np.ndarray | None
    answers: Answers
    unreadable: list[str]


def spread(num_images: int, limit: int) -> np.ndarray:
    """Return up to `limit` of the indices 0..num_images-1, at equal distances: files are often sorted by class."""
    return np.unique(np.linspace(0, num_images - 1, min(num_images, limit)).round().astype(np.int64))


def question(
    source: ImageSource,
    indices: np.ndarray,
    *,
    has_labels: bool,
    resize: Callable[[np.ndarray], torch.Tensor],
    probs: Callable[[torch.Tensor], torch.Tensor],
    folder: Path,
) -> Witness:
    """Read images by cvtrain, and keep its answers. Images that lie in no file of their own are written as PNG.

    Args:
        resize: (H, W, C) uint8 to (C, S, S) uint8.
        probs: (B, C, S, S) uint8 to probabilities (B, num_classes).
        folder: for the PNG files.

    Raises:
        RunError: no image could be read.
    """
    paths, labels, found, unreadable = [], [], [], []
    squares: list[np.ndarray] = []
    waiting: list[torch.Tensor] = []
    for index in indices.tolist():
        try:
            image = source.read(index)
        except BadImageError as error:
            unreadable.append(f"{source.name(index)}: {error.cause}")
            continue
        if isinstance(source, FileSource):
            paths.append(os.path.abspath(source.path(index)))  # noqa: PTH100  # a Path would lose bytes of a name
        else:
            paths.append(str(_write_png(folder / f"{index}.png", image)))
        labels.append(int(source.labels[index]))
        square = resize(image)
        if (len(squares) + 1) * square.numel() <= _MAX_PIXEL_BYTES:
            squares.append(square.permute(1, 2, 0).numpy())
        waiting.append(square)
        if len(waiting) == max(prove.BATCH_SIZES):
            found.append(probs(torch.stack(waiting)))
            waiting = []
    if waiting:
        found.append(probs(torch.stack(waiting)))
    if not found:
        raise RunError("the proof needs images, and none could be read:\n  " + "\n  ".join(unreadable[:3]))

    def run(batch: np.ndarray) -> torch.Tensor:
        return probs(torch.from_numpy(batch).permute(0, 3, 1, 2))

    first = squares[0] if squares else square.permute(1, 2, 0).numpy()
    answers = Answers(torch.cat(found).numpy(), np.stack(squares or [first]), prove.latencies(run, first))
    return Witness(paths, np.array(labels) if has_labels else None, answers, unreadable)


def interrogate(exported: Path, witness: Witness, folder: Path, *, reads_otherwise: bool = False) -> Answers:
    """Have the model in the folder `exported` answer the images of `witness`, in a fresh process without cvtrain.

    Args:
        folder: for what the process reads and writes.
        reads_otherwise: it reads files by other rules; give it the pixels that cvtrain saw, too.

    Raises:
        RunError: the model does not run, or could not read an image.
    """
    script = shutil.copy(prove.__file__, folder / "prove.py")
    job = {"images": witness.paths, "num_pixels": len(witness.answers.pixels), "parent": os.getpid()}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    if reads_otherwise:
        np.save(folder / "squares.npy", witness.answers.pixels)
    # -B: Python's byte code of classify.py is no part of an export.
    command = [sys.executable, "-B", str(script), str(exported), str(folder / "job.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        _, complaint = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        lines = complaint.strip().splitlines() or [f"exit code {process.returncode}"]
        raise RunError(f"the exported model does not run in a process of its own: {lines[-1][:400]}")
    record = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
    assert "cvtrain" not in record["modules"], "the proof ran with cvtrain's own code"
    given = folder / "probs_of_squares.npy"
    return Answers(
        np.load(folder / "probs.npy"),
        np.load(folder / "pixels.npy"),
        record["latency_ms"],
        np.load(given) if reads_otherwise else None,
    )


def _write_png(path: Path, image: np.ndarray) -> Path:
    """Write (H, W, 1 or 3) uint8 without loss."""
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path, compress_level=1)
    return path
