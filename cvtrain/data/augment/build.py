"""From `AugmentConfig` to what workers do per image and the device does per batch; every list is tried out once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.config.transform_names import BATCH_TRANSFORMS, EVAL_RESIZE
from cvtrain.config.transform_specs import (
    BATCH_TRANSFORMS_KEY,
    PER_IMAGE_TABLES,
    TRANSFORMS_KEY,
    TransformSpec,
    parse_transforms,
    walk_specs,
)
from cvtrain.data.augment.albumentations import build_albumentations_chain
from cvtrain.data.augment.batch import Augment, BatchTransform, Mix, keep_batch, keep_images
from cvtrain.data.augment.kornia import build_kornia_chain
from cvtrain.data.augment.mixup import BatchMixer
from cvtrain.data.augment.pipeline import Chain, TrainTransform
from cvtrain.data.augment.probe import probe_batch_chain, probe_train_transform
from cvtrain.data.augment.torchvision import build_torchvision_chain

_CHAIN_BUILDERS: dict[AugmentLibrary, Callable[..., Chain]] = {
    AugmentLibrary.torchvision: build_torchvision_chain,
    AugmentLibrary.albumentations: build_albumentations_chain,
}


def build_train_transform(
    augment: AugmentConfig,
    *,
    image_size: int,
    channels: int,
    eval_transform: Callable[[np.ndarray], torch.Tensor],
) -> TrainTransform | None:
    """Build the per-image transform of the workers; None if `augment.transforms` is empty.

    A list without a transform that changes sizes, or one that starts with EvalResize, works on what `eval_transform`
    makes; any other works on the image as it was read.

    Args:
        augment: typed config.
        image_size: S, side of the result in pixels.
        channels: C, 1 or 3.
        eval_transform: (H, W, C) uint8 array -> (C, S, S) uint8 tensor.

    Returns:
        (H, W, C) uint8 array, sample seed -> (C, S, S) uint8 tensor.

    Raises:
        ConfigError: a name, an argument or a value is wrong, or the list does not make (C, S, S) of a probe image.
    """
    table = PER_IMAGE_TABLES[augment.library.value]
    specs = parse_transforms(augment.transforms, key=TRANSFORMS_KEY, table=table)
    if not specs:
        return None
    resize_first = specs[0].name == EVAL_RESIZE
    specs = specs[1:] if resize_first else specs
    resize_first = resize_first or not any(spec.name in table.sizing for spec in walk_specs(specs))

    def build(certain: bool) -> TrainTransform:
        return TrainTransform(
            chain=_CHAIN_BUILDERS[augment.library](specs, image_size=image_size, certain=certain),
            resize=eval_transform if resize_first else None,
            image_size=image_size,
            channels=channels,
        )

    transform = build(certain=False)
    probe_train_transform(transform, certain=build(certain=True), sizing=table.sizing)
    return transform


def build_batch_transform(
    augment: AugmentConfig, *, num_classes: int, image_size: int | None = None, channels: int = 3
) -> BatchTransform:
    """Build the per-batch transform of the device: kornia's transforms and our own, then mixup or cutmix.

    Args:
        augment: typed config.
        num_classes: K.
        image_size: S; given, sizes may be left out of the list or written as `12.5%`, and the list is tried out now.
        channels: C of the probe.

    Raises:
        ConfigError: a name, an argument or a value is wrong, or the list does not keep (B, C, S, S).
    """
    specs = parse_transforms(augment.batch_transforms, key=BATCH_TRANSFORMS_KEY, table=BATCH_TRANSFORMS)
    return BatchTransform(
        augment=_build_augment(specs, image_size, channels) if specs else keep_images,
        mix=_build_mix(augment, num_classes) if augment.mixup_alpha > 0 or augment.cutmix_alpha > 0 else keep_batch,
    )


def _build_augment(specs: Sequence[TransformSpec], image_size: int | None, channels: int) -> Augment:
    chain = build_kornia_chain(specs, image_size=image_size)
    if image_size is not None:
        certain = build_kornia_chain(specs, image_size=image_size, certain=True)
        probe_batch_chain(chain, certain=certain, image_size=image_size, channels=channels)
    return chain


def _build_mix(augment: AugmentConfig, num_classes: int) -> Mix:
    return BatchMixer(
        num_classes=num_classes,
        mixup_alpha=augment.mixup_alpha,
        cutmix_alpha=augment.cutmix_alpha,
        mix_prob=augment.mix_prob,
        cutmix_share=augment.cutmix_share,
    )
