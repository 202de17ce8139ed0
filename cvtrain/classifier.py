"""`Classifier`: a checkpoint as something that classifies images."""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cvtrain.checkpoint import inference_weights, load_checkpoint
from cvtrain.checkpoint.trust import MAX_BATCH_PIXELS, MAX_IMAGE_SIZE, trusted_model
from cvtrain.commands.evaluate import build_checked, check_finite, choose_precision, read_config, read_temperature
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import FileDataConfig
from cvtrain.config.schema.model import CustomModelConfig, SavedModelConfig
from cvtrain.config.schema.root import Config, EvaluateConfig
from cvtrain.data.build import eval_transform_of
from cvtrain.data.images.convert import WHITE, image_to_array
from cvtrain.data.images.errors import BadImageError, describe_error
from cvtrain.data.images.reader import build_reader
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.normalize import Normalizer
from cvtrain.models.backbone import captured_features
from cvtrain.models.weights import load_checkpointed_weights
from cvtrain.runtime.device import choose_memory_format, select_device
from cvtrain.runtime.precision import backend_flags, select_precision
from cvtrain.training.evaluator import compute_logits

log = logging.getLogger(__name__)

# Decoders and torch's backends have settings of the whole process, which are set and put back: one thread at a time.
_TURN = threading.RLock()

# A path, a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W).
Image = Any


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, or why it could not be read.

    Attributes:
        classes: class names, the most probable first; empty if there is an `error`.
        probs: their probabilities, 0..1.
        error: what is wrong with the image, in words; None: it was read.
    """

    classes: tuple[str, ...]
    probs: tuple[float, ...]
    error: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the most probable class; None if there is an `error`."""
        return self.classes[0] if self.classes else None

    @property
    def prob(self) -> float | None:
        """Probability of `label`; None if there is an `error`."""
        return self.probs[0] if self.probs else None


class Classifier:
    """A trained network with its classes and its preprocessing. Made by `load`.

    Threads may share one: their calls take turns.

    Args:
        module: normalised (B, C, S, S) float32 images to (B, num_classes) logits, in eval mode on its device.
        classes: class names, by class id.
        reader: decodes the file at a path to (H, W, C) uint8.
        channels: C, 3 for RGB and 1 for grey.
        alpha_color: RGB colour behind transparent pixels, 0..255.
        bit_depth: bits that 16-bit values use, 8..16.
        resize: (H, W, C) uint8 to (C, S, S) uint8.
        normalizer: (B, C, S, S) uint8 to normalised float32, on the module's device.
        head: name of the part of `module` that turns an image's embedding into logits; None: it has no such part.
        dtype: of matrix products; weights are float32.
        temperature: probabilities are softmax(logits / temperature).
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
        bit_depth: int = 16,
        resize: EvalTransform,
        normalizer: Normalizer,
        head: str | None = None,
        dtype: torch.dtype = torch.float32,
        temperature: float = 1.0,
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
        self.reader = reader
        self.alpha_color = alpha_color
        self.bit_depth = bit_depth
        self.resize = resize
        self.dtype = dtype
        self.temperature = temperature
        self._normalizer = normalizer
        self._head = head
        self._flip = flip
        self._deterministic = deterministic
        self._images_at_once = batch_size

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
        with _TURN:
            return self._normalizer(self._pixels(image)[None].to(self.device))[0]

    def predict(self, images: Image | Iterable[Image], top_k: int = 1) -> list[Prediction]:
        """Return a `Prediction` of the `top_k` most probable classes for each image.

        An image that cannot be read gets a `Prediction` with an `error`. Images of one batch that are those of an
        evaluation's batch get the probabilities that `evaluate` writes to predictions_<split>.csv, equal to the bit on
        the same device; in other batches they differ by rounding.

        Args:
            images: one image, or a list, iterator or array (B, H, W, C) of them, each as `preprocess` takes it.
            top_k: classes to return, at most as many as there are.
        """
        if not 1 <= top_k <= len(self.classes):
            raise ValueError(f"top_k={top_k}: must be 1..{len(self.classes)}, the number of classes")
        found: list[Prediction] = []
        for items in self._batches(images):
            with _TURN:
                read = [self._try_pixels(image) for image in items]
                pixels = [each for each in read if isinstance(each, torch.Tensor)]
                rows: Iterator[Prediction] = iter(())
                if pixels:
                    rows = self._top(self.compute(torch.stack(pixels))[0], top_k)
            found += [Prediction((), (), each) if isinstance(each, str) else next(rows) for each in read]
        return found

    def embed(self, images: Image | Iterable[Image]) -> torch.Tensor:
        """Return the embedding of each image, (N, D) float32 on the CPU: what the network's head receives.

        A head's input with places or tokens, (B, D, H, W) or (B, T, D), is averaged over them.

        Args:
            images: as `predict` takes them.

        Raises:
            BadImageError: a file cannot be decoded.
            ImageError: as `preprocess`.
            ConfigError: the network has no head.
        """
        found = []
        for items in self._batches(images):
            with _TURN:
                pixels = torch.stack([self._pixels(image) for image in items])
                found.append(self.compute(pixels, embeddings=True)[1].cpu())
        return torch.cat(found) if found else torch.empty(0, 0)

    def compute(self, pixels: torch.Tensor, *, embeddings: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, num_classes) and embeddings (B, D), float32 on the device, of (B, C, S, S) uint8 images.

        Embeddings are (B, 0) unless they are asked for. Where a batch does not fit into the device's memory, it is
        computed in smaller parts, from then on.
        """
        while True:
            try:
                parts = [self._compute(part, embeddings) for part in pixels.split(self._images_at_once)]
                return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            except torch.OutOfMemoryError:
                size = min(self._images_at_once, len(pixels))
                if size == 1:
                    raise
                self._images_at_once = size // 2
            log.warning("out of memory with %d images at once: going on with %d", size, self._images_at_once)

    def _compute(self, pixels: torch.Tensor, embeddings: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if embeddings:
            self.check_head()
        with torch.inference_mode(), backend_flags(self.device, self.dtype, deterministic=self._deterministic):
            images = self._normalizer(pixels.to(self.device))
            if not embeddings or self._head is None:
                logits = compute_logits(self.module, images, self.dtype, flip=self._flip)
                return logits, logits[:, :0]
            with captured_features(self.module, self._head) as captured:
                logits = compute_logits(self.module, images, self.dtype, flip=self._flip)
            return logits, torch.stack(captured).mean(0)  # of two mirror images with `flip`

    def check_head(self) -> None:
        """Raise ConfigError unless the network has a head, whose input an embedding is."""
        if self._head is None:
            raise ConfigError(
                rule="embeddings are what a network's head receives, and no part of this one is its head",
                remedy="train it with model.head=NAME of its last layer",
            )

    def _batches(self, images: Image | Iterable[Image]) -> Iterator[list[Image]]:
        is_many = isinstance(images, (list, tuple, Iterator)) or getattr(images, "ndim", 0) == 4
        rest = iter(images if is_many else [images])
        while items := list(itertools.islice(rest, self.batch_size)):
            yield items

    def _top(self, logits: torch.Tensor, top_k: int) -> Iterator[Prediction]:
        ids = logits.topk(top_k, dim=1).indices
        probs = (logits / self.temperature).softmax(dim=1).gather(1, ids)
        for row_ids, row_probs in zip(ids.tolist(), probs.tolist(), strict=True):
            yield Prediction(tuple(self.classes[id] for id in row_ids), tuple(row_probs))

    def _pixels(self, image: Image) -> torch.Tensor:
        """(C, S, S) uint8."""
        return self.resize(self._array(image))

    def _try_pixels(self, image: Image) -> torch.Tensor | str:
        """(C, S, S) uint8, or what is wrong with the image."""
        try:
            array = self._array(image)
        except BadImageError as error:
            return error.cause
        except Exception as error:  # PIL images decode lazily, and Pillow raises almost any type
            return describe_error(error)
        return self.resize(array)

    def _array(self, image: Image) -> np.ndarray:
        """(H, W, C) uint8."""
        if isinstance(image, (str, os.PathLike)):
            return self.reader(os.fspath(image))
        return image_to_array(image, self.channels, self.alpha_color, self.bit_depth)


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    model_target: str | None = None,
    image_size: int | None = None,
) -> Classifier:
    """Return the classifier in a checkpoint file, such as `runs/.../checkpoints/best.pt`.

    Runs no code that the checkpoint names.

    Args:
        device: auto, cpu, cuda, cuda:1 or mps; auto takes the best that is there.
        model_target: import path of the class of a `model=custom` checkpoint.
        image_size: side of the images in pixels; None: as the run had it.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain.
        ConfigError: the class of a `model=custom` checkpoint, or images of more than 2,048 pixels, have to be named; or
            the device is not there.
    """
    file = Path(path)
    settings = EvaluateConfig(checkpoint=str(file), device=device, model=SavedModelConfig(target=model_target))
    state = load_checkpoint(file)
    trained = read_config(state, file)
    if isinstance(trained.model, CustomModelConfig) and model_target is None:
        raise ConfigError(
            rule=f"{file} was made with the class {trained.model.target}, and a checkpoint never names code to run",
            remedy=f"if you trust the class: load({str(file)!r}, model_target={trained.model.target!r})",
        )
    size = image_size or trained.data.image_size
    if image_size is None and size > MAX_IMAGE_SIZE:
        raise ConfigError(
            rule=f"{file} asks for images of {size} pixels, more than {MAX_IMAGE_SIZE}, which take much memory",
            remedy=f"if you trust it: load({str(file)!r}, image_size={size})",
        )
    settings.data.image_size = size
    batch_size = trained.data.eval_batch_size or trained.data.batch_size
    settings.batch_size = max(1, min(batch_size, MAX_BATCH_PIXELS // size**2))
    return build_classifier(state, trained, settings)


def build_classifier(state: dict[str, Any], trained: Config, settings: EvaluateConfig) -> Classifier:
    """Return the classifier of a loaded checkpoint and its run's config, with what `settings` say differently."""
    weights = inference_weights(state)
    check_finite(weights, Path(settings.checkpoint))
    device = select_device(settings.device, key="device")
    built = build_checked(trusted_model(trained.model, settings), trained.data, len(state["classes"]), weights)
    load_checkpointed_weights(built.module, weights)
    memory_format = choose_memory_format(trained.trainer.channels_last, built.convolutional)
    shape = state["preprocessing"]
    return Classifier(
        built.module.to(device).to(memory_format=memory_format).eval(),
        state["classes"],
        reader=_reader(trained.data, shape["channels"]),
        channels=shape["channels"],
        alpha_color=tuple(getattr(trained.data, "alpha_color", WHITE)),
        bit_depth=getattr(trained.data, "bit_depth", 16),
        resize=eval_transform_of(replace(trained.data, image_size=settings.data.image_size or shape["image_size"])),
        normalizer=Normalizer(tuple(shape["mean"]), tuple(shape["std"]), memory_format).to(device),
        head=built.head[0] if built.head and built.head[0] else None,
        dtype=select_precision(choose_precision(settings, state, device.type), device, key="precision"),
        temperature=read_temperature(state, Path(settings.checkpoint)),
        batch_size=settings.batch_size or trained.data.eval_batch_size or trained.data.batch_size,
        flip=trained.trainer.eval_flip if settings.eval_flip is None else settings.eval_flip,
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
        bit_depth=data.bit_depth,
    )
