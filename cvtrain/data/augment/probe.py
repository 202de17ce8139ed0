"""Trying a list out when it is built: what would fail in the third epoch fails now, and what does nothing is named."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cvtrain.config.transform_specs import BATCH_TRANSFORMS_KEY, TRANSFORMS_KEY
from cvtrain.data.augment.kornia import KorniaChain
from cvtrain.data.augment.pipeline import Step, TrainTransform
from cvtrain.data.augment.rng import seeded_torch

logger = logging.getLogger(__name__)

# Seeds tried with every transform on, and again as configured: each option of a short choice comes up.
_SEEDS = range(4)
_DOES_NOTHING = ("Identity", "NoOp")


def probe_train_transform(transform: TrainTransform, *, certain: TrainTransform, sizing: tuple[str, ...]) -> None:
    """Run both on an image somewhat larger than the result, and warn of transforms that change no pixel.

    Args:
        transform: as configured.
        certain: the same with every probability 1.
        sizing: names of transforms that change sizes. Whether they have work to do depends on the image.

    Raises:
        ConfigError: a transform fails, or the result is not (C, S, S).
    """
    channels, side, _ = transform.shape
    image = _probe_image(round(1.3 * side) + 1, round(1.6 * side) + 1, channels)
    with _library_warnings(TRANSFORMS_KEY):
        for seed in _SEEDS:
            certain(image, seed)
            transform(image, seed)
        images = [image if certain.resize is None else _as_array(certain.resize(image))] * len(_SEEDS)
        for step in certain.chain.steps:
            alone = type(certain.chain)([step])
            results = [_as_array(alone(start, seed)) for seed, start in zip(_SEEDS, images, strict=True)]
            changed = any(not np.array_equal(*pair) for pair in zip(images, results, strict=True))
            if not changed and not (certain.resize is None and step.name in sizing):
                _warn_of_idle(step, channels)
            images = results


def probe_batch_chain(chain: KorniaChain, *, certain: KorniaChain, image_size: int, channels: int) -> None:
    """The same for kornia's chain, on a batch of two on the CPU.

    Raises:
        ConfigError: a transform fails, or the result has another shape.
    """
    pixels = np.stack([_probe_image(image_size, image_size, channels)] * 2).transpose(0, 3, 1, 2)
    images = torch.from_numpy(pixels).float() / 255
    with _library_warnings(BATCH_TRANSFORMS_KEY):
        for seed in _SEEDS:
            certain(images, seed)
            chain(images, seed)
        batches = [images] * len(_SEEDS)
        for step in certain.steps:
            results = []
            for seed, start in zip(_SEEDS, batches, strict=True):
                with seeded_torch(seed), torch.no_grad():
                    results.append(step.transform(start))
            if all(torch.equal(*pair) for pair in zip(batches, results, strict=True)):
                _warn_of_idle(step, channels)
            batches = results


def _as_array(image: torch.Tensor) -> np.ndarray:
    """(C, H, W) uint8 tensor as the (H, W, C) array that a chain takes."""
    return image.permute(1, 2, 0).numpy()


def _probe_image(height: int, width: int, channels: int) -> np.ndarray:
    """(H, W, C) uint8: a dim ramp with noise on it, so that contrast, edges and positions can all change."""
    ramp = np.linspace(40, 180, height)[:, None, None] * np.linspace(0.5, 1, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 32, (height, width, channels))
    return (ramp + noise).astype(np.uint8)


def _warn_of_idle(step: Step, channels: int) -> None:
    if step.name not in _DOES_NOTHING:
        plural = "s" if channels > 1 else ""
        logger.warning(
            "%s changed no pixel of a test image: here, with %d channel%s, it has no effect", step.key, channels, plural
        )


@contextmanager
def _library_warnings(key: str) -> Iterator[None]:
    """Warnings that the libraries raise inside go to the log, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        logger.warning("%s: warning of the library: %s", key, message)
