"""`build_model`: from a model's config to a network that is ready to train."""

import dataclasses
from collections.abc import Callable
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import (
    CustomModelConfig,
    Freeze,
    MLPConfig,
    ModelConfig,
    PretrainedConfig,
    SmallConvNetConfig,
    Stem,
    TimmModelConfig,
    TorchvisionModelConfig,
    is_file_name,
)
from cvtrain.models.built import BuiltModel
from cvtrain.models.custom import build_custom
from cvtrain.models.mlp import build_mlp
from cvtrain.models.small_convnet import build_small_convnet
from cvtrain.models.stem import has_small_stem
from cvtrain.models.timm import build_timm
from cvtrain.models.torchvision import build_torchvision

_BUILDERS: dict[type[ModelConfig], Callable[..., BuiltModel]] = {
    MLPConfig: build_mlp,
    SmallConvNetConfig: build_small_convnet,
    TorchvisionModelConfig: build_torchvision,
    TimmModelConfig: build_timm,
    CustomModelConfig: build_custom,
}


def build_model(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> BuiltModel:
    """The network of `config` for square images, on the CPU in float32 and in training mode.

    Random weights come from torch's default generator: seed it before. Nothing is frozen yet; see
    `set_backbone_trainable`.

    Args:
        num_classes: outputs, at least 2.
        channels: 3 (RGB) or 1 (grey).
        image_size: side of the images in pixels.

    Raises:
        ConfigError: a setting is wrong, weights cannot be had or do not fit, or the network cannot take the images.
    """
    built = _BUILDERS[type(config)](config, num_classes=num_classes, channels=channels, image_size=image_size)
    if config.freeze == Freeze.backbone and not built.head:
        raise ConfigError(
            key="model.freeze",
            value=config.freeze,
            rule="the network has no layer that could be its head, so nothing would train",
            remedy="name the part that trains with model.head",
        )
    return built


def without_weights(config: ModelConfig) -> ModelConfig:
    """A copy of `config` that builds the same network and loads nothing: for weights that come from a checkpoint."""
    changes: dict[str, Any] = {}
    if isinstance(config, PretrainedConfig):
        changes.update(pretrained=False, weights=None)
    elif isinstance(config, CustomModelConfig):
        changes.update(weights=None)
    # What followed from the weights is written out.
    if isinstance(config, TorchvisionModelConfig) and _stem_follows_from_weights(config):
        changes.update(stem=Stem.imagenet)
    if isinstance(config, TimmModelConfig) and config.weights is not None and not is_file_name(config.weights):
        changes.update(arch=f"{config.arch.split('.')[0]}.{config.weights}")
    return dataclasses.replace(config, **changes)


def _stem_follows_from_weights(config: TorchvisionModelConfig) -> bool:
    return config.pretrained and config.stem == Stem.auto and has_small_stem(config.arch)
