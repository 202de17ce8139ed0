"""`Classifier`: a checkpoint as something that classifies images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvtrain.checkpoint import inference_weights, load_checkpoint
from cvtrain.checkpoint.trust import trusted_model
from cvtrain.commands.evaluate import build_checked, check_finite, choose_precision, read_config
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import FileDataConfig
from cvtrain.config.schema.model import CustomModelConfig
from cvtrain.config.schema.root import EvaluateConfig, EvaluateModelConfig
from cvtrain.data.images.convert import WHITE, image_to_array
from cvtrain.data.images.reader import build_reader
from cvtrain.data.images.resize import EvalTransform, build_eval_transform
from cvtrain.data.normalize import Normalizer
from cvtrain.models.weights import load_checkpointed_weights
from cvtrain.runtime.device import choose_memory_format, select_device
from cvtrain.runtime.precision import autocast, backend_flags, select_precision

# A path, a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W).
Image = Any


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        classes: class names, the most probable first.
        probs: their probabilities, 0..1.
    """

    classes: tuple[str, ...]
    probs: tuple[float, ...]

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.classes[0]

    @property
    def prob(self) -> float:
        """Probability of `label`."""
        return self.probs[0]


class Classifier:
    """A trained network with its classes and its preprocessing. Made by `load`.

    Args:
        module: normalised (B, C, S, S) float32 images to (B, num_classes) logits, in eval mode on its device.
        classes: class names, by class id.
        reader: decodes the file at a path to (H, W, C) uint8.
        channels: C, 3 for RGB and 1 for grey.
        alpha_color: RGB colour behind transparent pixels, 0..255.
        resize: (H, W, C) uint8 to (C, S, S) uint8.
        normalizer: (B, C, S, S) uint8 to normalised float32, on the module's device.
        dtype: of matrix products; weights are float32.
        batch_size: images that `predict` takes at once.
        flip: average the logits of each image and of its mirror image, as `trainer.eval_flip` has it.
        deterministic: take kernels that give the same result each time, as `trainer.deterministic` has it.
    """

    def __init__(
        self,
        module: nn.Module,
        classes: Sequence[str],
        *,
        reader: Callable[[str], np.ndarray],
        channels: int,
        alpha_color: tuple[int, ...] = WHITE,
        resize: EvalTransform,
        normalizer: Normalizer,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        flip: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.module = module
        self.classes = tuple(classes)
        self.device = normalizer.mean.device
        self.channels = channels
        self.image_size = resize.image_size
        self.batch_size = batch_size
        self._reader = reader
        self._alpha_color = alpha_color
        self._resize = resize
        self._normalizer = normalizer
        self._dtype = dtype
        self._flip = flip
        self._deterministic = deterministic

    def __repr__(self) -> str:
        return (
            f"Classifier({type(self.module).__name__}, {len(self.classes)} classes, "
            f"{self.channels} x {self.image_size} x {self.image_size}, {self.device})"
        )

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return an image as `module` takes it: normalised (C, S, S) float32 on the classifier's device.

        Args:
            image: a path, a PIL image, an array (H, W) or (H, W, C) in RGB order, or a tensor (H, W) or (C, H, W).
                Arrays and tensors hold uint8, uint16, bool or floating-point values in 0..1.

        Raises:
            BadImageError: the file cannot be decoded.
            ImageError: an array of unknown range or layout.
        """
        return self._normalizer(self._pixels(image)[None].to(self.device))[0]

    def predict(self, images: Image | Sequence[Image], top_k: int = 1) -> list[Prediction]:
        """Return a `Prediction` of the `top_k` most probable classes for each image.

        Images of one batch that are those of an evaluation's batch get the probabilities that `evaluate` writes to
        predictions_<split>.csv, equal to the bit on the same device; in other batches they differ by rounding.

        Args:
            images: one image, or a list or array (B, H, W, C) of them, each as `preprocess` takes it.
            top_k: classes to return, at most as many as there are.

        Raises:
            BadImageError, ImageError: as `preprocess`.
        """
        if not 1 <= top_k <= len(self.classes):
            raise ValueError(f"top_k={top_k}: must be 1..{len(self.classes)}, the number of classes")
        is_many = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        items = list(images) if is_many else [images]
        found: list[Prediction] = []
        for start in range(0, len(items), self.batch_size):
            pixels = torch.stack([self._pixels(image) for image in items[start : start + self.batch_size]])
            logits = self._logits(pixels)
            ids = logits.topk(top_k, dim=1).indices
            probs = logits.softmax(dim=1).gather(1, ids)
            for row_ids, row_probs in zip(ids.tolist(), probs.tolist(), strict=True):
                found.append(Prediction(tuple(self.classes[id] for id in row_ids), tuple(row_probs)))
        return found

    def _pixels(self, image: Image) -> torch.Tensor:
        """(C, S, S) uint8."""
        if isinstance(image, (str, os.PathLike)):
            return self._resize(self._reader(os.fspath(image)))
        return self._resize(image_to_array(image, self.channels, self._alpha_color))

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, num_classes) float32 of (B, C, S, S) uint8."""
        with (
            torch.inference_mode(),
            backend_flags(self.device, self._dtype, deterministic=self._deterministic),
            autocast(self.device, self._dtype),
        ):
            images = self._normalizer(pixels.to(self.device))
            logits = self.module(images).float()
            return (logits + self.module(images.flip(3)).float()) / 2 if self._flip else logits


def load(path: str | os.PathLike[str], device: str = "auto", *, model_target: str | None = None) -> Classifier:
    """Return the classifier in a checkpoint file, such as `runs/.../checkpoints/best.pt`.

    Runs no code that the checkpoint names.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps; auto takes the best that is there.
        model_target: import path of the class of a `model=custom` checkpoint.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain.
        ConfigError: the class of a `model=custom` checkpoint has to be named, or the device is not there.
    """
    file = Path(path)
    state = load_checkpoint(file)
    trained = read_config(state, file)
    if isinstance(trained.model, CustomModelConfig) and model_target is None:
        raise ConfigError(
            rule=f"{file} was made with the class {trained.model.target}, and a checkpoint never names code to run",
            remedy=f"if you trust the class: load({str(file)!r}, model_target={trained.model.target!r})",
        )
    weights = inference_weights(state)
    check_finite(weights, file)
    settings = EvaluateConfig(checkpoint=str(file), model=EvaluateModelConfig(target=model_target))
    chosen = select_device(device, key="device")
    built = build_checked(trusted_model(trained.model, settings), trained.data, len(state["classes"]), weights)
    load_checkpointed_weights(built.module, weights)
    memory_format = choose_memory_format(trained.trainer.channels_last, built.convolutional)
    shape = state["preprocessing"]
    return Classifier(
        built.module.to(chosen).to(memory_format=memory_format).eval(),
        state["classes"],
        reader=_reader(trained.data, shape["channels"]),
        channels=shape["channels"],
        alpha_color=tuple(getattr(trained.data, "alpha_color", WHITE)),
        resize=build_eval_transform(
            image_size=shape["image_size"], resize=shape["resize"], crop_fraction=shape["crop_fraction"]
        ),
        normalizer=Normalizer(tuple(shape["mean"]), tuple(shape["std"]), memory_format).to(chosen),
        dtype=select_precision(choose_precision(settings, state, chosen.type), chosen, key="precision"),
        batch_size=trained.data.eval_batch_size or trained.data.batch_size,
        flip=trained.trainer.eval_flip,
        deterministic=trained.trainer.deterministic,
    )


def _reader(data: Any, channels: int) -> Callable[[str], np.ndarray]:
    """The reader of the run's image files; of a run on images of another kind, the default one."""
    if not isinstance(data, FileDataConfig):
        return build_reader(channels=channels)
    return build_reader(
        library=data.reader.value,
        channels=channels,
        alpha_color=tuple(data.alpha_color),
        max_image_pixels=data.max_image_pixels,
    )
