"""Networks of the timm library (Wightman 2019), an extra, by their names."""

import difflib
import logging
from pathlib import Path
from typing import Any

from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import Interpolation
from cvtrain.config.schema.model import TimmModelConfig, is_file_name
from cvtrain.models.built import BuiltModel, is_convolutional
from cvtrain.models.download import is_reachable
from cvtrain.models.dry_run import first_tensor, run_in_evaluation
from cvtrain.models.heads import init_head, is_inside, last_layer
from cvtrain.models.layer_groups import group_by_depth
from cvtrain.models.stem import grey_state
from cvtrain.models.weights import describe_preprocessing, load_weights, read_state, strip_prefix

log = logging.getLogger(__name__)

INTERPOLATIONS = tuple(kernel.value for kernel in Interpolation if kernel is not Interpolation.auto)

# What cvtrain passes to timm.create_model itself, and where the user sets it.
_OWN_ARGUMENTS = {
    "model_name": "model.arch",
    "pretrained": "model.pretrained",
    "num_classes": "the data",
    "in_chans": "data.channels",
    "checkpoint_path": "model.weights",
}


def build_timm(config: TimmModelConfig, *, num_classes: int, channels: int, image_size: int) -> BuiltModel:
    """The network `config.arch` of timm with a head for `num_classes`.

    `model.weights` is a tag of timm's (a1_in1k) or a local file. A transformer for images of one size is built for
    `image_size`; timm interpolates its position embeddings.

    Raises:
        ConfigError: timm is not installed, has no such network, tag or argument, or the weights cannot be had.
    """
    import timm

    local_file = config.weights is not None and is_file_name(config.weights)
    name = _network_name(config, timm)
    defaults = _defaults(name, config, timm)
    module = _create(timm, name, config, defaults, num_classes, channels, image_size, hub=not local_file)
    head = _head(module)
    # timm itself keeps the head of weights for as many classes.
    new_head = not (config.pretrained and not local_file and defaults.num_classes == num_classes)
    if new_head:
        init_head(module, head)
    mean = std = interpolation = crop_fraction = None
    if config.pretrained:
        record = module.pretrained_cfg
        mean, std = (_per_channel(record[key], channels) for key in ("mean", "std"))
        interpolation = record.get("interpolation") if record.get("interpolation") in INTERPOLATIONS else None
        crop_fraction = record.get("crop_pct")
        preprocessing = describe_preprocessing(mean, std, interpolation, crop_fraction)
    if config.pretrained and config.weights is not None and local_file:
        weights = strip_prefix(read_state(Path(config.weights).expanduser(), entry=config.weights_entry), module)
        state, first = weights.state, module.pretrained_cfg.get("first_conv")
        if channels == 1 and isinstance(first, str):
            state = grey_state(state, first)
        replaced = load_weights(module, state, head=head, source=weights.source)
        new_head = bool(replaced)
        new = f"; new head: {', '.join(replaced)}" if replaced else ""
        log.info("loaded %s; %s, timm's for %s%s", weights.source, preprocessing, config.arch, new)
    elif config.pretrained:
        log.info("loaded timm's %s; %s", name, preprocessing)
    _check_image_size(config, module, num_classes, channels, image_size)
    return BuiltModel(
        module,
        head,
        _layers(module, head),
        mean,
        std,
        interpolation=interpolation,
        crop_fraction=crop_fraction,
        is_pretrained=config.pretrained,
        new_head=new_head,
        convolutional=is_convolutional(module),
    )


def _network_name(config: TimmModelConfig, timm: Any) -> str:
    """`arch`, with the tag of the weights if one is named."""
    if not timm.is_model(config.arch):
        names = timm.list_models()
        close = difflib.get_close_matches(config.arch.split(".")[0].lower(), names, n=3)
        raise ConfigError(
            key="model.arch",
            value=config.arch,
            rule=f"timm {timm.__version__} has no network of that name",
            remedy=f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists them",
        )
    if config.weights is None or is_file_name(config.weights):
        return config.arch
    return f"{config.arch.split('.')[0]}.{config.weights}"


def _defaults(name: str, config: TimmModelConfig, timm: Any) -> Any:
    """timm's record of the pretrained weights of `name`; None where it has none."""
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        base = name.split(".")[0]
        tags = sorted(full.split(".", 1)[1] for full in timm.list_pretrained(f"{base}.*"))
        raise ConfigError(
            key="model.weights" if config.weights else "model.arch",
            value=config.weights or config.arch,
            rule=f"timm has no such weights for {base}; it has {', '.join(tags) or 'none'}",
        ) from error
    published = found is not None and found.has_weights
    if config.pretrained and not published and not (config.weights and is_file_name(config.weights)):
        raise ConfigError(
            key="model.pretrained",
            value=True,
            rule=f"timm has no published weights for {name}",
            remedy="start from random weights with model.pretrained=false, or name a local file with model.weights",
        )
    return found


def _create(
    timm: Any,
    name: str,
    config: TimmModelConfig,
    defaults: Any,
    num_classes: int,
    channels: int,
    image_size: int,
    *,
    hub: bool,
) -> Any:
    for argument, setting in _OWN_ARGUMENTS.items():
        if argument in config.kwargs:
            raise ConfigError(
                key=f"model.kwargs.{argument}",
                value=config.kwargs[argument],
                rule=f"is decided by {setting}",
                remedy="leave it out",
            )
    kwargs = dict(config.kwargs)
    if defaults is not None and defaults.fixed_input_size and image_size != defaults.input_size[-1]:
        kwargs.setdefault("img_size", image_size)
    kwargs.update(pretrained=config.pretrained and hub, num_classes=num_classes, in_chans=channels)
    try:
        if kwargs["pretrained"]:
            return _create_from_hub(timm, name, kwargs, defaults)
        return timm.create_model(name, **kwargs)
    except TypeError as error:
        raise ConfigError(
            key="model.kwargs", value=config.kwargs, rule=f"timm cannot build {name} with it: {error}"
        ) from error
    except AssertionError as error:
        raise ConfigError(
            key="data.image_size", value=image_size, rule=f"timm cannot build {name} for it: {error}"
        ) from error


def _create_from_hub(timm: Any, name: str, kwargs: dict[str, Any], defaults: Any) -> Any:
    """The pretrained network, from the hub's cache or from the hub.

    Without a network the hub's client would try again for most of a minute, so it is told beforehand.
    """
    from huggingface_hub import constants

    offline, reason = constants.HF_HUB_OFFLINE, f"{constants.ENDPOINT} gave no answer"
    try:
        reachable = not offline and is_reachable(constants.ENDPOINT)
    except OSError as error:
        reachable, reason = False, f"{constants.ENDPOINT} failed: {error}"
    constants.HF_HUB_OFFLINE = not reachable
    try:
        return timm.create_model(name, **kwargs)
    except OSError as error:
        where = defaults.hf_hub_id or defaults.url or name
        raise ConfigError(
            key="model.pretrained",
            value=True,
            rule=f"the weights {where} are not in the cache {constants.HF_HUB_CACHE}, "
            + (
                "and HF_HUB_OFFLINE is set"
                if offline
                else f"and downloading them from {reason}"
                if not reachable
                else f"and downloading them failed: {error}"
            ),
            remedy="fetch them where there is a network and copy the cache, or model.pretrained=false",
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _head(module: Any) -> tuple[str, ...]:
    """Names of the head's layers, as timm's record of the network has them."""
    names = module.pretrained_cfg.get("classifier") or ()
    submodules = dict(module.named_modules())
    found = tuple(name for name in ((names,) if isinstance(names, str) else names) if name in submodules)
    if found:
        return found
    last = last_layer(module)
    return () if last is None else (last,)


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """Three values for RGB; their average for grey."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _layers(module: Any, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Groups by timm's own record of blocks where the network has one, the head last."""
    if not hasattr(module, "group_matcher"):
        return group_by_depth(module, head)
    from timm.models import group_parameters

    numbers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    groups: dict[int, list[str]] = {}
    last: list[str] = []
    for name, _ in module.named_parameters():
        (last if is_inside(name, head) else groups.setdefault(numbers[name], [])).append(name)
    return tuple(tuple(names) for names in (*(groups[number] for number in sorted(groups)), last) if names)


def _check_image_size(
    config: TimmModelConfig, module: nn.Module, num_classes: int, channels: int, image_size: int
) -> None:
    shape = (2, channels, image_size, image_size)
    try:
        logits = first_tensor(run_in_evaluation(module, shape))
    except Exception as error:  # torch and timm raise several types for a size that does not fit
        raise ConfigError(
            key="data.image_size",
            value=image_size,
            rule=f"{config.arch} cannot take images of {image_size}x{image_size} ({error})",
            remedy=f"its own size is {module.pretrained_cfg.get('input_size', ['?'])[-1]}",  # type: ignore[union-attr, operator]
        ) from error
    assert logits is not None and logits.shape == (2, num_classes)
