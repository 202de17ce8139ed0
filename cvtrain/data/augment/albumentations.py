"""Per-image transforms of albumentations 2.0, on uint8 arrays.

What the library does that a config must not rely on, and what is done about it here:
- At import it asks a package index over the network for its newest version: switched off around the import.
- An unknown argument only warns, and some wrong values warn and fall back to defaults: arguments are checked by
  name, and `strict=True` makes the rest errors.
- `Compose(seed=...)` gives every transform a generator of its own with the same seed, so that two flips with p=0.5
  always flip together: here all share one generator per sample.
"""

import importlib
import logging
import os
import pickle
import random
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.transform_names import ALBUMENTATIONS
from cvtrain.config.transform_specs import TransformSpec
from cvtrain.data.augment.arguments import Arguments, construct, library_class
from cvtrain.data.augment.pipeline import Chain, Step, step_error

logger = logging.getLogger(__name__)

_CV2_CONSTANT = re.compile(r"(?:cv2\.)?((INTER|BORDER)_[A-Z0-9_]+)")
_NO_UPDATE_CHECK = "NO_ALBUMENTATIONS_UPDATE"


class AlbumentationsChain(Chain):
    """albumentations transforms one after the other."""

    def __getstate__(self) -> bytes:
        # Packed, so that a spawned worker imports the library by import_albumentations and not by unpickling.
        return pickle.dumps(self.steps)

    def __setstate__(self, state: bytes) -> None:
        import_albumentations()
        self.steps = pickle.loads(state)

    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        generator, python_random = np.random.default_rng(seed), random.Random(seed)
        array = np.ascontiguousarray(image)  # (H, W, C): OpenCV wants no views
        for step in self.steps:
            step.transform.set_random_state(generator, python_random)
            before = array
            try:
                array = step.transform(image=array)["image"]
            except Exception as error:
                raise step_error(step, before.shape, error) from error
            if array.ndim == 2:  # (H, W): some functions of OpenCV drop a single channel
                array = array[:, :, None]
        if not array.flags.writeable:
            array = array.copy()  # torch has no read-only tensors and warns
        return torch.from_numpy(array).permute(2, 0, 1)


def import_albumentations() -> Any:
    """The albumentations module, imported without its question to the network."""
    before = os.environ.get(_NO_UPDATE_CHECK)
    os.environ[_NO_UPDATE_CHECK] = "1"
    try:
        return importlib.import_module("albumentations")
    finally:
        if before is None:
            del os.environ[_NO_UPDATE_CHECK]
        else:
            os.environ[_NO_UPDATE_CHECK] = before


def build_albumentations_chain(
    specs: Sequence[TransformSpec], *, image_size: int, certain: bool = False
) -> AlbumentationsChain:
    """The chain of a list of specs; `certain` gives every transform probability 1.

    Raises:
        ConfigError: an argument is unknown or missing, or albumentations refuses its value.
    """
    side = image_size
    reader = Arguments(
        library="albumentations",
        image_size=side,
        filled={"size": (side, side), "height": side, "width": side, "min_height": side, "min_width": side},
        sizing=ALBUMENTATIONS.sizing,
        hidden=frozenset({"strict", "first", "second"}),
        convert=_convert,
        certain=certain,
    )
    return AlbumentationsChain([Step(spec.key, _build(spec, reader)) for spec in specs])


def _build(spec: TransformSpec, reader: Arguments) -> Any:
    albumentations = import_albumentations()
    cls = library_class(albumentations, spec, "albumentations", albumentations.__version__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transform = _construct(spec, cls, reader)
    for warning in () if reader.certain else caught:  # the second build of the same list would only repeat them
        logger.warning("%s: albumentations warns: %s", spec.key, warning.message)
    return transform


def _construct(spec: TransformSpec, cls: type, reader: Arguments) -> Any:
    if spec.name in ALBUMENTATIONS.compositions:
        children = [_build(child, reader) for child in spec.children]
        values = reader.read(spec, cls, given=("transforms",))
        return construct(spec, cls, values, library="albumentations", transforms=children)
    values = reader.read(spec, cls)
    # Only constructors that the library's metaclass has wrapped know `strict`.
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    try:
        return cls(**values, strict=True) if "InitSchema" in vars(owner) else cls(**values)
    except Exception as error:
        raise _refusal(spec, error) from error


def _refusal(spec: TransformSpec, error: Exception) -> ConfigError:
    """The library's pydantic errors, by argument, in plain words."""
    from pydantic import ValidationError

    cause = error if isinstance(error, ValidationError) else error.__cause__
    if isinstance(cause, ValidationError):
        details = cause.errors(include_url=False, include_context=False, include_input=False)
        reason = "; ".join(
            f"{'.'.join(map(str, detail['loc'][:1]))}: {detail['msg']}".lstrip(": ") for detail in details
        )
    else:
        reason = str(error)
    return ConfigError(spec.key, dict(spec.arguments), f"albumentations refuses these arguments: {reason}")


def _convert(name: str, value: Any, key: str) -> Any:
    """OpenCV's constants by name, and tuples for lists."""
    if isinstance(value, (list, tuple)):
        return tuple(_convert(name, item, key) for item in value)
    if isinstance(value, dict):
        return {inner: _convert(name, item, key) for inner, item in value.items()}
    constant = _CV2_CONSTANT.fullmatch(value) if isinstance(value, str) else None
    if constant is None:
        return value
    import cv2

    if hasattr(cv2, constant.group(1)):
        return getattr(cv2, constant.group(1))
    known = sorted(entry for entry in dir(cv2) if entry.startswith(f"{constant.group(2)}_"))
    raise ConfigError(key, value, "is no constant of OpenCV", f"it has {', '.join(known)}")
