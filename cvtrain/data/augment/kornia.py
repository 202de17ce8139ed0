"""Per-batch transforms, of kornia.augmentation and our own, on float images in 0..1 on their device."""

from collections.abc import Sequence
from typing import Any

import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.transform_names import BATCH_OP_NAMES, KORNIA
from cvtrain.config.transform_specs import TransformSpec
from cvtrain.data.augment.arguments import Arguments, construct, library_class
from cvtrain.data.augment.batch_ops import BATCH_OPS
from cvtrain.data.augment.pipeline import Step, step_error
from cvtrain.data.augment.rng import seeded_torch

# Arguments that kornia takes as tensors only.
_TENSORS = ("center_x", "center_y", "gamma")


class KorniaChain:
    """Batch transforms one after the other, as a function of (images, seed)."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Augment a batch. The same images and seed give the same bits on the same device.

        Args:
            images: (B, C, S, S) float in 0..1; not changed.
            seed: of this step, any number of 64 bits.

        Returns:
            (B, C, S, S), same dtype and device.

        Raises:
            ConfigError: a transform cannot deal with these images, or the result has another shape.
        """
        result = images
        with seeded_torch(seed, images.device):
            for step in self.steps:
                before = result
                try:
                    result = step.transform(before)
                except Exception as error:
                    raise step_error(step, (*before.shape[2:], before.shape[1]), error) from error
        if result.shape != images.shape:
            names = " -> ".join(step.name for step in self.steps)
            rule = f"{names} makes {tuple(result.shape[1:])} of images of {tuple(images.shape[1:])}"
            raise ConfigError("augment.batch_transforms", rule=rule, remedy="end with Resize or CenterCrop")
        return result


def build_kornia_chain(specs: Sequence[TransformSpec], *, image_size: int | None, certain: bool = False) -> KorniaChain:
    """The chain of a list of specs; `certain` gives every transform probability 1.

    Raises:
        ConfigError: an argument is unknown or missing, or its value is refused.
    """
    own = Arguments(library="cvtrain", image_size=image_size, filled={}, sizing=(), convert=_convert, certain=certain)
    reader = Arguments(
        library="kornia",
        image_size=image_size,
        filled={} if image_size is None else {"size": (image_size, image_size)},
        sizing=KORNIA.sizing,
        hidden=frozenset({"keepdim", "data_keys"}),
        convert=_convert,
        certain=certain,
    )
    return KorniaChain([Step(spec.key, _build_any(spec, own, reader)) for spec in specs])


def _build_any(spec: TransformSpec, own: Arguments, reader: Arguments) -> Any:
    if spec.name not in BATCH_OP_NAMES:
        return _build(spec, reader)
    cls = BATCH_OPS[spec.name]
    return construct(spec, cls, own.read(spec, cls), library="cvtrain")


def _build(spec: TransformSpec, reader: Arguments) -> Any:
    import kornia

    cls = library_class(kornia.augmentation, spec, "kornia", kornia.__version__)
    values = reader.read(spec, cls)
    if spec.name not in KORNIA.compositions:
        if spec.name == "RandomFisheye":
            values |= {name: torch.tensor(values[name], dtype=torch.float32) for name in _TENSORS}
        if values.get("rgb_weights") is not None:
            values["rgb_weights"] = torch.tensor(values["rgb_weights"], dtype=torch.float32)
        return construct(spec, cls, values, library="kornia")
    for child in spec.children:
        if child.name in BATCH_OP_NAMES:
            raise ConfigError(child.key, rule=f"{child.name} is none of kornia's", remedy="put it into the list itself")
    children = [_build(child, reader) for child in spec.children]
    return construct(spec, lambda **options: cls(*children, **options), values, library="kornia")


def _convert(name: str, value: Any, key: str) -> Any:
    """Tuples for lists: kornia asks for them by type."""
    return tuple(_convert(name, item, key) for item in value) if isinstance(value, list) else value
