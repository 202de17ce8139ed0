"""Every classification network of torchvision, by its name."""

import logging
from typing import Any

from torch import nn

from cvtrain.config.architectures import AUXILIARY_ARCHS, TORCHVISION_ARCHS
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Stem, TorchvisionModelConfig, is_file_name
from cvtrain.models.built import BuiltModel, is_convolutional
from cvtrain.models.dry_run import forward_meta
from cvtrain.models.heads import init_head, torchvision_head
from cvtrain.models.layer_groups import group_by_depth
from cvtrain.models.stem import find_input_conv, has_small_stem, make_grey, make_small_stem
from cvtrain.models.torchvision_weights import WeightsSource, choose_weights
from cvtrain.models.weights import describe_preprocessing, load_weights

log = logging.getLogger(__name__)

_SMALL_IMAGE = 64
_LARGEST_TRIED = 1024
# Every network was published for images of this size, inception_v3 for larger ones.
_PUBLISHED_SIZE, _AUXILIARY_SIZE = 224, 299


def build_torchvision(
    config: TorchvisionModelConfig, *, num_classes: int, channels: int, image_size: int
) -> BuiltModel:
    """The network `config.arch` with a head for `num_classes`, on the weights that the config asks for.

    The network is built with its new head and weights are loaded around it. Weights for as many classes as
    `num_classes` keep their head.

    `transform_input` of googlenet and inception_v3 stays off: with published weights the statistics are 0.5 and 0.5,
    which is what it would make of ImageNet's.

    Raises:
        ConfigError: no such network, a setting that it does not have, weights that cannot be had or do not fit, or
            an image size that it cannot take.
    """
    assert config.arch in TORCHVISION_ARCHS, config.arch
    small = _wants_small_stem(config, image_size)
    weights = choose_weights(config)
    module = _construct(config, num_classes, image_size)
    if small:
        make_small_stem(module)
    input_conv = find_input_conv(module)
    if channels == 1:
        make_grey(module, input_conv)
    _check_image_size(config, module, channels, image_size)
    head = torchvision_head(module)
    mean = std = interpolation = crop_fraction = None
    new_head = True
    init_head(module, head)
    if weights is not None:
        mean, std = weights.statistics(channels)
        interpolation, crop_fraction = weights.resize()
        new_head = _load(module, head, weights, config, input_conv=input_conv, channels=channels, image_size=image_size)
    return BuiltModel(
        module,
        head,
        group_by_depth(module, head),
        mean,
        std,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
        is_pretrained=weights is not None,
        new_head=new_head,
        convolutional=is_convolutional(module),
        aux_loss_weight=config.aux_loss_weight if len(head) > 1 else 0.0,
    )


def list_torchvision() -> list[str]:
    """Names of torchvision's classification networks."""
    from torchvision import models

    return models.list_models(module=models)


def _wants_small_stem(config: TorchvisionModelConfig, image_size: int) -> bool:
    if not has_small_stem(config.arch):
        assert config.stem == Stem.auto, "config/checks lets none through"
        return False
    if config.stem == Stem.auto:
        return image_size <= _SMALL_IMAGE and not config.pretrained
    local_file = config.weights is not None and is_file_name(config.weights)
    if config.stem == Stem.small and config.pretrained and not local_file:
        raise ConfigError(
            key="model.stem",
            value=config.stem,
            rule="the published weights have the 7x7 kernel of the imagenet stem",
            remedy="choose one: model.stem=imagenet or model.pretrained=false",
        )
    return config.stem == Stem.small


def _construct(config: TorchvisionModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """The network with random weights, for RGB images."""
    from torchvision import models

    arch = config.arch
    kwargs: dict[str, Any] = {"num_classes": num_classes}
    if arch in AUXILIARY_ARCHS:
        # Without init_weights torchvision warns and leaves the choice open.
        kwargs.update(init_weights=True, aux_logits=config.aux_loss_weight > 0)
    elif arch.startswith("vit_"):
        patch = _patch_size(arch)
        if image_size % patch:
            raise ConfigError(
                key="data.image_size",
                value=image_size,
                rule=f"{arch} takes multiples of {patch}, the size of its patches",
                remedy=f"data.image_size={_nearest_multiple(image_size, patch)}",
            )
        kwargs["image_size"] = image_size
    elif arch.startswith("maxvit"):
        kwargs["input_size"] = (image_size, image_size)
    try:
        return models.get_model(arch, weights=None, **kwargs)
    except ValueError as error:
        if not arch.startswith("maxvit"):
            raise
        raise ConfigError(
            key="data.image_size",
            value=image_size,
            rule=f"{arch} takes multiples of 224: at every stage its windows must fill the image",
            remedy=f"data.image_size={_nearest_multiple(image_size, 224)}",
        ) from error


def _patch_size(arch: str) -> int:
    """16 for vit_b_16."""
    return int(arch.rsplit("_", 1)[-1])


def _nearest_multiple(size: int, of: int) -> int:
    return max(1, round(size / of)) * of


def _check_image_size(config: TorchvisionModelConfig, module: nn.Module, channels: int, image_size: int) -> None:
    """Run the network on shapes for a training batch, auxiliary heads included, so that a size fails here or never."""
    # A network that takes a size takes all larger ones, and a pass on shapes imports torch's compiler for 2 s.
    if image_size >= (_AUXILIARY_SIZE if config.arch in AUXILIARY_ARCHS else _PUBLISHED_SIZE):
        return
    cause = _failure(module, channels, image_size)
    if cause is None:
        return
    smallest = _smallest_size(module, channels, image_size)
    remedy = f"data.image_size={smallest} is the smallest that it takes" if smallest else "choose another size"
    if config.arch in AUXILIARY_ARCHS and config.aux_loss_weight > 0:
        remedy += "; without its auxiliary heads (model.aux_loss_weight=0) it takes smaller ones"
    raise ConfigError(
        key="data.image_size",
        value=image_size,
        rule=f"{config.arch} cannot take images of {image_size}x{image_size} ({cause})",
        remedy=remedy,
    ) from cause


def _failure(module: nn.Module, channels: int, image_size: int) -> Exception | None:
    try:
        forward_meta(module, (2, channels, image_size, image_size))
    except Exception as error:  # torch raises several types for maps that shrink to nothing
        return error
    return None


def _smallest_size(module: nn.Module, channels: int, too_small: int) -> int | None:
    """The smallest size that works, by bisection: a network that takes a size takes all larger ones."""
    works = too_small
    while _failure(module, channels, works) is not None:
        too_small, works = works, works * 2
        if works > _LARGEST_TRIED:
            return None
    while works - too_small > 1:
        middle = (too_small + works) // 2
        if _failure(module, channels, middle) is None:
            works = middle
        else:
            too_small = middle
    return works


def _load(
    module: nn.Module,
    head: tuple[str, ...],
    weights: WeightsSource,
    config: TorchvisionModelConfig,
    *,
    input_conv: str,
    channels: int,
    image_size: int,
) -> bool:
    """Load the weights around the head. Returns whether the head keeps its own values, not those of the weights."""
    read = weights.read(module, config.weights_entry)
    state = weights.adapt(
        read.state,
        input_conv=input_conv if channels == 1 else None,
        image_size=image_size if config.arch.startswith("vit_") else None,
        patch_size=_patch_size(config.arch) if config.arch.startswith("vit_") else None,
        auxiliary=len(head) > 1,
    )
    replaceable = (*head, *weights.without_values)
    remedy = (
        "choose the network that the weights were made for, and its model.stem" if has_small_stem(config.arch) else ""
    )
    replaced = load_weights(module, state, head=replaceable, source=read.source, remedy=remedy)
    new = f"; new head: {', '.join(replaced)}" if replaced else ""
    expected = describe_preprocessing(*weights.statistics(channels), *weights.resize())
    log.info("loaded %s; %s%s", read.source, expected, new)
    if weights.image_size not in (None, image_size):
        log.info("these weights were evaluated at data.image_size=%d; this run has %d", weights.image_size, image_size)
    return bool(replaced)
