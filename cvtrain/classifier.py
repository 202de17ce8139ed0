"""`Classifier`: a checkpoint as something that classifies images."""

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import display_list
from cvtrain.data.images.convert import WHITE, image_to_array
from cvtrain.data.images.errors import BadImageError, describe_error
from cvtrain.data.images.reader import Reader
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.normalize import Normalizer
from cvtrain.explain.explanation import METHODS, Explainer, Explanation
from cvtrain.models.backbone import captured_features
from cvtrain.runtime.precision import backend_flags
from cvtrain.training.evaluator import compute_logits

log = logging.getLogger(__name__)

# Decoders and torch's backends have settings of the whole process, which are set and put back: one thread at a time.
_TURN = threading.RLock()

# A path, the bytes of a file, a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W).
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
        reader: decodes a file, or its bytes, to (H, W, C) uint8.
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
        reader: Reader,
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
        self._explainer = Explainer(module, normalize=normalizer, probs=self._exact_probs, batch_size=batch_size)

    def __repr__(self) -> str:
        return (
            f"Classifier({type(self.module).__name__}, {len(self.classes)} classes, "
            f"{self.channels} x {self.image_size} x {self.image_size}, {self.device})"
        )

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return an image as `module` takes it: normalised (C, S, S) float32 on the classifier's device.

        Args:
            image: a path, the bytes of an image file, a PIL image, an array (H, W) or (H, W, C) in RGB order, or a
                tensor (H, W) or (C, H, W). Arrays and tensors hold uint8, uint16, bool or floating-point values in
                0..1.

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

    def explain(self, image: Image, target: str | None = None, method: str = "gradcam") -> Explanation:
        """Return where the network looked in one image, with a score that says whether that means anything.

        The heat map lies over the square image that the network sees, after resize and crop, and is computed in
        float32 without a mirror image. Where no part of the network gives a map with places, such as in an MLP,
        occlusion takes the place of Grad-CAM, and the log says so once.

        Args:
            image: as `preprocess` takes it.
            target: name of the class to explain; None: the most probable one.
            method: gradcam, hirescam (see `class_activation_maps`) or occlusion (see `occlusion_map`).

        Raises:
            BadImageError: the file cannot be decoded.
            ImageError: as `preprocess`.
            ValueError: an unknown class or method.
        """
        if target is not None and target not in self.classes:
            raise ValueError(f"target={target!r}: no such class; there are {display_list(self.classes)}")
        with _TURN:
            return self.explain_pixels(
                self._pixels(image), None if target is None else self.classes.index(target), method
            )

    def explain_pixels(self, pixels: torch.Tensor, target: int | None, method: str) -> Explanation:
        """Return the explanation of (C, S, S) uint8 pixels for a class id, or for the most probable class."""
        if method not in METHODS:
            raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}")
        with _TURN, backend_flags(self.device, torch.float32, deterministic=self._deterministic):
            return self._explainer.explain(pixels, self.classes, target, method)

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

    def _exact_probs(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, num_classes) float64 on the CPU: in float32, those near 1 would round to it."""
        return (self.compute(pixels)[0].cpu().double() / self.temperature).softmax(dim=1)

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
        if isinstance(image, bytes):
            return self.reader.decode(image, "the image")
        if isinstance(image, (str, os.PathLike)):
            return self.reader(os.fspath(image))
        return image_to_array(image, self.channels, self.alpha_color, self.bit_depth)
