"""Rules of group `model`."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.architectures import AUXILIARY_ARCHS, SMALLEST_IMAGE, STEM_FAMILIES, TORCHVISION_ARCHS
from cvtrain.config.errors import Problem
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.imports import NO_IMPORT_PATH, is_import_path
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.data import DatasetConfig
from cvtrain.config.schema.model import (
    CustomModelConfig,
    Freeze,
    PretrainedConfig,
    Stem,
    TorchvisionModelConfig,
    is_file_name,
)
from cvtrain.config.schema.root import Config


def unfreezing_has_effect(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model = config.model
    if model.unfreeze_epoch is None or not is_set("model.unfreeze_epoch"):
        return
    if model.freeze is Freeze.none:
        yield Problem(
            "model.unfreeze_epoch",
            model.unfreeze_epoch,
            "has no effect with model.freeze=none",
            "set model.freeze=backbone, or leave it out",
        )
    elif model.unfreeze_epoch > config.trainer.epochs and config.trainer.max_steps is None:
        yield Problem(
            "model.unfreeze_epoch",
            model.unfreeze_epoch,
            f"has no effect: the run ends after epoch {config.trainer.epochs}",
            "set a smaller epoch or a larger trainer.epochs, or leave it out",
        )


def rates_reach_backbone(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """A backbone that never trains has no learning rate."""
    if config.model.freeze is Freeze.none or config.model.unfreeze_epoch is not None:
        return
    for key in ("backbone_lr_scale", "layer_decay"):
        value = getattr(config.optimizer, key)
        if value not in (None, 1.0) and is_set(f"optimizer.{key}"):
            yield Problem(
                f"optimizer.{key}",
                value,
                "has no effect with model.freeze=backbone: the backbone never trains",
                "set model.unfreeze_epoch, or leave it out",
            )


def weights_are_used(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model = config.model
    if isinstance(model, PretrainedConfig) and model.weights is not None and not model.pretrained:
        yield Problem(
            "model.weights", model.weights, "has no effect with model.pretrained=false", "leave one of the two out"
        )


def _is_local_file(model: PretrainedConfig | CustomModelConfig) -> bool:
    return model.weights is not None and (isinstance(model, CustomModelConfig) or is_file_name(model.weights))


def weights_entry_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model = config.model
    if not isinstance(model, (PretrainedConfig, CustomModelConfig)) or model.weights_entry is None:
        return
    if not _is_local_file(model):
        rule = "has no effect: it names a part of a local file, and model.weights is none"
        yield Problem("model.weights_entry", model.weights_entry, rule, "leave it out")


def weight_file_exists(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model = config.model
    if not isinstance(model, (PretrainedConfig, CustomModelConfig)) or not _is_local_file(model):
        return
    if not Path(str(model.weights)).expanduser().is_file():
        yield Problem("model.weights", model.weights, "no such file", f"paths start from {Path.cwd()}")


def architecture_is_known(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model = config.model
    if not isinstance(model, TorchvisionModelConfig):
        return
    if model.arch not in TORCHVISION_ARCHS:
        yield Problem(
            "model.arch",
            model.arch,
            "is no classification network of torchvision",
            did_you_mean(closest(model.arch, TORCHVISION_ARCHS, 3)),
        )


def parts_exist(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    """The stem and the auxiliary heads that are set are there to be set."""
    model = config.model
    if not isinstance(model, TorchvisionModelConfig):
        return
    if model.stem is not Stem.auto and is_set("model.stem") and not model.arch.startswith(STEM_FAMILIES):
        yield Problem(
            "model.stem",
            model.stem,
            f"has no effect: {model.arch} has no stem to choose; resnet, resnext and wide_resnet have",
            "leave it out",
        )
    if is_set("model.aux_loss_weight") and model.arch not in AUXILIARY_ARCHS:
        yield Problem(
            "model.aux_loss_weight",
            model.aux_loss_weight,
            f"has no effect: {model.arch} has no auxiliary heads; {' and '.join(AUXILIARY_ARCHS)} have",
            "leave it out",
        )


def image_is_large_enough(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    model, size = config.model, config.data.image_size
    smallest = SMALLEST_IMAGE.get(model.arch, 1) if isinstance(model, TorchvisionModelConfig) else 1
    if size < smallest:
        yield Problem("data.image_size", size, f"is too small: {model.name} needs at least {smallest}")


def targets_are_dotted(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    for key, owner in (("model.target", config.model), ("data.target", config.data)):
        if not isinstance(owner, (CustomModelConfig, DatasetConfig)):
            continue
        if not is_import_path(owner.target):
            yield Problem(key, owner.target, NO_IMPORT_PATH)


MODEL_CHECKS = (
    unfreezing_has_effect,
    rates_reach_backbone,
    weights_are_used,
    weights_entry_is_used,
    weight_file_exists,
    architecture_is_known,
    parts_exist,
    image_is_large_enough,
    targets_are_dotted,
)
