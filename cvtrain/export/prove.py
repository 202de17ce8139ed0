"""Answer images with an exported model, in a process of its own: python prove.py FOLDER JOB. Needs no cvtrain.

JOB is a JSON file with `images` (paths), `num_pixels` (images of which the pixels are kept) and `parent` (the process
that waits). Beside it come `probs.npy` (N, num_classes) float32, `pixels.npy` (num_pixels, S, S, C) uint8, and
`proof.json` with the milliseconds of a batch by its size. A folder for timm reads images by timm's transforms; of the
pixels of `squares.npy`, those that cvtrain saw, it gives `probs_of_squares.npy`.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Sizes of batches, in turn. A model that is fixed to one of them fails.
BATCH_SIZES = (1, 2, 7, 32)
LATENCY_SIZES = (1, 8, 32)
RUNS, SECONDS = 10, 2.0


class TimmModel:
    """A folder for timm, used as its model card says.

    Args:
        folder: has config.json and model.safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        import timm
        import torch

        spec = json.loads((Path(folder) / "preprocess.json").read_text(encoding="utf-8"))
        self.mode = "L" if spec["channels"] == 1 else "RGB"
        self.temperature = spec["temperature"]
        self.network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(self.network)
        self.transform = timm.data.create_transform(**config, is_training=False)
        self.mean, self.std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def read(self, path: str) -> np.ndarray:
        """Return an image file as the square that the model sees, (S, S, C) uint8, without its normalisation."""
        from PIL import Image, ImageOps

        image = self.transform(ImageOps.exif_transpose(Image.open(path)).convert(self.mode))
        return (255 * (image * self.std + self.mean)).round().byte().permute(1, 2, 0).numpy()

    def probs(self, squares: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, num_classes) float32 of squares (B, S, S, C) uint8."""
        import torch

        images = (torch.from_numpy(squares).permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        with torch.inference_mode():
            return (self.network(images) / self.temperature).softmax(1).numpy()


def answer(model: Any, job: dict[str, Any], folder: Path) -> None:
    """Write the answers of `model` to the images of `job` into `folder`."""
    paths: list[str] = job["images"]
    probs: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    turn = 0
    while len(probs) < len(paths):
        if os.getppid() != job["parent"]:
            sys.exit("the command that asked for this is gone")
        batch = paths[len(probs) : len(probs) + BATCH_SIZES[turn % len(BATCH_SIZES)]]
        squares = np.stack([model.read(path) for path in batch])
        pixels += list(squares[: max(0, job["num_pixels"] - len(probs))])
        probs += list(model.probs(squares))
        turn += 1
    np.save(folder / "probs.npy", np.stack(probs))
    np.save(folder / "pixels.npy", np.stack(pixels))
    seen = folder / "squares.npy"
    if seen.exists():
        squares = np.load(seen)
        parts = [model.probs(squares[first : first + 32]) for first in range(0, len(squares), 32)]
        np.save(folder / "probs_of_squares.npy", np.concatenate(parts))
    record = {
        "latency_ms": latencies(model.probs, pixels[0]),
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    (folder / "proof.json").write_text(json.dumps(record), encoding="utf-8")


def latencies(run: Any, square: np.ndarray) -> dict[str, float]:
    """Return the milliseconds of a batch by its size: the median of up to 10 runs in about 2 s, after a first one."""
    found = {}
    for size in LATENCY_SIZES:
        batch = np.repeat(square[None], size, axis=0)
        run(batch)
        times: list[float] = []
        while not times or (len(times) < RUNS and sum(times) < SECONDS):
            started = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - started)
        found[str(size)] = 1000 * float(np.median(times))
    return found


if __name__ == "__main__":
    exported, job_file = sys.argv[1:]
    sys.path.insert(0, exported)
    if (Path(exported) / "config.json").exists():
        model: Any = TimmModel(exported)
    else:
        from classify import Model  # type: ignore[import-not-found]  # the file beside the model

        model = Model(exported)
    answer(model, json.loads(Path(job_file).read_text(encoding="utf-8")), Path(job_file).parent)
