"""Per-image transforms of torchvision.transforms.v2, on uint8 tensors.

Tensors, not Pillow images: on one core, a photo of 500x375 to a random 224 crop and flip took 0.2 ms by a tensor
that keeps its channels last, 0.8 ms by Pillow (docs/augmentation.md has the table). A crop and flip at the start of a
list are done by `CropFlip`, with the same bits, and colours by `FastColorJitter`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.transform_names import TORCHVISION
from cvtrain.config.transform_specs import TransformSpec
from cvtrain.data.augment.arguments import Arguments, construct, library_class
from cvtrain.data.augment.color_jitter import find_colour_jitter
from cvtrain.data.augment.crop_flip import find_crop_flip
from cvtrain.data.augment.pipeline import Chain, Step, step_error
from cvtrain.data.augment.rng import seeded_torch

_RGB = 3  # channels


class TorchvisionChain(Chain):
    """v2 transforms one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__(steps)
        self._crop_flip = find_crop_flip(self.steps)
        others = self.steps if self._crop_flip is None else self.steps[self._crop_flip.num_steps :]
        self._others = tuple((step, find_colour_jitter(step)) for step in others)

    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        with seeded_torch(seed):
            tensor = _to_tensor(image) if self._crop_flip is None else self._crop_flip(image, torch.default_generator)
            for step, jitter in self._others:
                before = tensor
                try:
                    if jitter is not None and len(tensor) == _RGB:
                        tensor = jitter(tensor, torch.default_generator)
                    else:
                        tensor = step.transform(tensor)
                except Exception as error:
                    raise step_error(step, before.permute(1, 2, 0).shape, error) from error
        return tensor


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) to (C, H, W), its channels last in memory as before: torchvision resizes that without a copy."""
    # torch has no read-only tensors and warns.
    return torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)


def build_torchvision_chain(
    specs: Sequence[TransformSpec], *, image_size: int, certain: bool = False
) -> TorchvisionChain:
    """The chain of a list of specs; `certain` gives every transform probability 1.

    Raises:
        ConfigError: an argument is unknown or missing, or torchvision refuses its value.
    """
    reader = Arguments(
        library="torchvision",
        image_size=image_size,
        filled={"size": (image_size, image_size)},
        sizing=TORCHVISION.sizing,
        # In place would write into the data set's memory.
        hidden=frozenset({"inplace"}),
        convert=_convert,
        certain=certain,
    )
    return TorchvisionChain([Step(spec.key, _build(spec, reader)) for spec in specs])


def _build(spec: TransformSpec, reader: Arguments) -> Any:
    import torchvision
    from torchvision.transforms import v2

    cls = library_class(v2, spec, "torchvision", torchvision.__version__)
    if spec.name not in TORCHVISION.compositions:
        return construct(spec, cls, reader.read(spec, cls), library="torchvision")
    children = [_build(child, reader) for child in spec.children]
    values = reader.read(spec, cls, given=("transforms",))
    return construct(spec, cls, values, library="torchvision", transforms=children)


def _convert(name: str, value: Any, key: str) -> Any:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import AutoAugmentPolicy

    enums = {"interpolation": InterpolationMode, "policy": AutoAugmentPolicy}
    if name not in enums:
        return value
    try:
        return enums[name](value)
    except ValueError:
        choices = ", ".join(member.value for member in enums[name])
        raise ConfigError(key, value, f"{name} is one of {choices}") from None
