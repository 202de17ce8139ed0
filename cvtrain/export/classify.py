"""Classify images with the model in this folder. Needs no cvtrain.

    python classify.py photo.jpg other.png

Needs NumPy, Pillow, and what runs the model: onnxruntime for model.onnx, torch for model.pt2. `Model` is for use from
Python. preprocess.json has the classes and all numbers of the preprocessing; a program in another language follows
`read_image` and `to_square`, and feeds the model as `Model.probs` does.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Spec = dict[str, Any]


class Model:
    """The model in a folder that `cvtrain export` wrote.

    Args:
        folder: has preprocess.json and the model's file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.spec: Spec = json.loads((Path(folder) / "preprocess.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.spec["classes"]
        load = RUNTIMES[self.spec["format"]]
        self._run = load(Path(folder) / self.spec["model"])

    def read(self, path: str | Path) -> np.ndarray:
        """Return an image file as the square that the model sees, (S, S, C) uint8."""
        return to_square(read_image(path, self.spec), self.spec)

    def probs(self, squares: np.ndarray) -> np.ndarray:
        """Return the probabilities (B, num_classes) float32 of squares (B, S, S, C) uint8."""
        if self.spec["input"] == "image":
            return self._run(np.ascontiguousarray(squares))
        mean, std = (np.array(self.spec[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
        images = np.ascontiguousarray(squares.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        logits = self._run((images - mean) / std) / np.float32(self.spec["temperature"])
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, path: str | Path) -> tuple[str, float]:
        """Return the most probable class of an image file, and its probability."""
        probs = self.probs(self.read(path)[None])[0]
        return self.classes[int(probs.argmax())], float(probs.max())


def read_image(path: str | Path, spec: Spec) -> np.ndarray:
    """Return the image in a file as (H, W, C) uint8: upright, RGB or grey, over `alpha_color` where transparent."""
    with Image.open(path) as image:
        image.load()
        upright = _to_8_bit(ImageOps.exif_transpose(image), spec["bit_depth"])
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        upright = Image.new("RGB", layered.size, tuple(spec["alpha_color"]))
        upright.paste(layered, mask=layered.getchannel("A"))
    if spec["channels"] == 1:
        grey = upright if upright.mode == "L" else upright.convert("RGB").convert("L")
        return np.array(grey)[:, :, None]
    return np.array(upright.convert("RGB"))


def _to_8_bit(image: Image.Image, bit_depth: int) -> Image.Image:
    """Of 16-bit grey, the first 8 of the `bit_depth` bits that values use; any other image as it is."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray((np.minimum(values, 2**bit_depth - 1) >> (bit_depth - 8)).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    return Image.merge("LA", (grey, Image.fromarray((values != image.info["transparency"]).astype(np.uint8) * 255)))


def to_square(image: np.ndarray, spec: Spec) -> np.ndarray:
    """Return (H, W, C) uint8 as (S, S, C) uint8, resized as in training: see docs/export.md."""
    size, interpolation = spec["image_size"], spec["interpolation"]
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if spec["resize"] == "squash":
        return resize(image, size, size, interpolation)
    if spec["resize"] == "pad":
        scale = size / max(height, width)
        height, width = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        top, left = (size - height) // 2, (size - width) // 2
        square = np.full((size, size, image.shape[2]), spec["pad_value"], np.uint8)
        square[top : top + height, left : left + width] = resize(image, height, width, interpolation)
        return square
    # The short side to `short_side`, then the centre. The ends of a very long image are cut off first.
    short = min(height, width)
    height, width = min(height, spec["max_aspect"] * short), min(width, spec["max_aspect"] * short)
    image = center_crop(image, height, width)
    new_height, new_width = height * spec["short_side"] // short, width * spec["short_side"] // short
    return center_crop(resize(image, new_height, new_width, interpolation), size, size)


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the centre of (H, W, C); an odd pixel is left to Python's rounding, half to even."""
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Return (H, W, C) uint8 resized with antialiasing, to the bit as torch's uint8 kernel: width, then height.

    Pillow's `resize` with BILINEAR or BICUBIC is the same with finer weights: a few values differ by 1.
    """
    wide = _resize_first_axis(image.swapaxes(0, 1), width, interpolation).swapaxes(0, 1)
    return _resize_first_axis(wide, height, interpolation)


def _resize_first_axis(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """(M, N, C) uint8 to (size, N, C) uint8: weighted means, with weights as 16-bit whole numbers."""
    length = pixels.shape[0]
    if length == size:
        return pixels
    radius, kernel = (1.0, _triangle) if interpolation == "bilinear" else (2.0, _cubic)
    scale = length / size
    stretch = max(scale, 1.0)
    rows = []
    for index in range(size):
        center = scale * (index + 0.5)
        first = max(int(center - radius * stretch + 0.5), 0)
        last = min(int(center + radius * stretch + 0.5), length)
        weights = kernel((np.arange(first, last) - center + 0.5) * (1.0 / stretch))
        rows.append((first, last, weights / np.cumsum(weights)[-1]))
    largest = max(weights.max() for _, _, weights in rows)
    bits = next(bits for bits in range(23) if bits == 22 or int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15)
    resized = np.empty((size, *pixels.shape[1:]), np.uint8)
    for index, (first, last, weights) in enumerate(rows):
        whole = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
        # Sums of whole numbers below 2^53: exact in float64, whatever their order.
        sums = np.tensordot(whole, pixels[first:last].astype(np.float64), axes=1)
        resized[index] = np.clip(np.floor((sums + (1 << (bits - 1))) / (1 << bits)), 0, 255)
    return resized


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5, as Pillow has it."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


# ---------------------------------------------------------------- what runs a model: a file to a function of one batch


def load_onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a batch to the output of an ONNX model, on the CPU."""
    # ONNX Runtime 1.32 reports to its maker from the moment it is imported, unless this is set before.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_pt2(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a batch to the output of a program of torch.export, on the CPU."""
    import torch

    network = torch.export.load(str(file)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


RUNTIMES = {"onnx": load_onnx, "pt2": load_pt2}


def main(paths: list[str]) -> int:
    """Print path, class and probability of each image; return 3 if one could not be read."""
    model = Model(Path(__file__).parent)
    status = 0
    for path in paths:
        try:
            name, prob = model.predict(path)
            print(f"{path}\t{name}\t{prob:.6f}", flush=True)
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises
            print(f"{path}\t{error}", file=sys.stderr)
            status = 3
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
