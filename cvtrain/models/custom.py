"""The user's own network, through the one open door."""

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from cvtrain.config.errors import ConfigError
from cvtrain.config.imports import import_object
from cvtrain.config.schema.model import CustomModelConfig
from cvtrain.models.built import BuiltModel, is_convolutional
from cvtrain.models.dry_run import evaluation_mode, first_tensor, run_in_evaluation
from cvtrain.models.heads import init_head, is_inside, last_layer, named_head
from cvtrain.models.layer_groups import group_by_depth
from cvtrain.models.weights import load_weights, read_state, strip_prefix

# Words of torch's messages about sizes that do not fit.
_ABOUT_SHAPES = re.compile(r"shape|size|channel|dimension", re.IGNORECASE)

log = logging.getLogger(__name__)


def build_custom(config: CustomModelConfig, *, num_classes: int, channels: int, image_size: int) -> BuiltModel:
    """The network that `config.target` gives for `num_classes`, `config.kwargs` and, where it takes them by name,
    `channels` and `image_size`.

    The head is `config.head`, else the last linear or convolutional layer by order of definition.

    Raises:
        ConfigError: the target cannot be imported or called so, gives no Module, or gives another number of outputs
            than `num_classes`.
        Exception: whatever the user's code raises, with its own traceback.
    """
    target = import_object(config.target, "model.target")
    kwargs = _arguments(target, config, num_classes=num_classes, channels=channels, image_size=image_size)
    module = target(**kwargs)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            key="model.target",
            value=config.target,
            rule=f"gave a {type(module).__name__}, not a torch.nn.Module",
            remedy="name a class that derives from torch.nn.Module, or a function that returns an instance of one",
        )
    shape = (2, channels, image_size, image_size)
    with _naming_shape(config, shape):
        _materialize(module, shape)
    head = _head(config, module)
    new_head = True
    if config.weights is not None:
        weights = strip_prefix(read_state(Path(config.weights).expanduser(), entry=config.weights_entry), module)
        replaced = load_weights(module, weights.state, head=head, source=weights.source)
        init_head(module, tuple(name for name in head if any(is_inside(item, (name,)) for item in replaced)))
        new_head = bool(replaced)
        log.info("loaded %s%s", weights.source, f"; new head: {', '.join(replaced)}" if replaced else "")
    _check_output(config, module, shape, num_classes)
    fixed = frozenset(name for name, parameter in module.named_parameters() if not parameter.requires_grad)
    return BuiltModel(
        module,
        head,
        group_by_depth(module, head),
        is_pretrained=config.weights is not None,
        new_head=new_head,
        convolutional=is_convolutional(module),
        fixed=fixed,
    )


def _arguments(target: Any, config: CustomModelConfig, **facts: int) -> dict[str, Any]:
    """What `target` is called with: num_classes, the other facts that its signature names, and the user's kwargs."""
    if not callable(target):
        raise ConfigError(
            key="model.target", value=config.target, rule=f"is a {type(target).__name__}, not a class or a function"
        )
    if "num_classes" in config.kwargs:
        raise ConfigError(
            key="model.kwargs.num_classes",
            value=config.kwargs["num_classes"],
            rule=f"the data decide the number of classes: {facts['num_classes']}",
            remedy="leave it out",
        )
    signature = _signature(target)
    parameters = signature.parameters if signature is not None else {}
    named = {"num_classes", *(name for name in facts if name in parameters)}
    kwargs = {**{name: value for name, value in facts.items() if name in named}, **config.kwargs}
    if signature is not None:
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            raise ConfigError(
                key="model.kwargs",
                value=config.kwargs,
                rule=f"{config.target} cannot be called with {', '.join(kwargs)}: {error}",
                remedy=f"it is {config.target.rsplit('.', 1)[-1]}{signature}; it has to take num_classes",
            ) from error
    return kwargs


def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):  # some callables written in C have none
        return None


@contextmanager
def _naming_shape(config: CustomModelConfig, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn a layer's complaint about shapes into one that names the batch and the settings that made it."""
    try:
        yield
    except RuntimeError as error:
        if not _ABOUT_SHAPES.search(str(error)):
            raise
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
        place = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
        raise ConfigError(
            key="model.target",
            value=config.target,
            rule=f"its network cannot take images of shape {list(shape)}: {str(error).splitlines()[0]}{place}",
            remedy=f"the shape is that of data.channels={shape[1]} and data.image_size={shape[2]}; a class that takes "
            "channels or image_size by name gets them",
        ) from error


def _materialize(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Give lazy layers (torch.nn.LazyLinear, ...) their shapes by one pass over black images."""
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        with torch.no_grad(), evaluation_mode(module):
            module(torch.zeros(shape))


def _head(config: CustomModelConfig, module: nn.Module) -> tuple[str, ...]:
    if config.head is not None:
        return (named_head(module, config.head),)
    name = last_layer(module)
    if name is None:
        log.warning("model.head: %s has no linear or convolutional layer, so it has no head", config.target)
        return ()
    log.info("head: %s, the last layer that is defined; set model.head if it is another", name or "the whole network")
    return (name,)


def _check_output(config: CustomModelConfig, module: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    with _naming_shape(config, shape):
        logits = first_tensor(run_in_evaluation(module, shape))
    if logits is None or logits.shape != (shape[0], num_classes):
        got = "no tensor" if logits is None else f"shape {list(logits.shape)}"
        raise ConfigError(
            key="model.target",
            value=config.target,
            rule=f"its network gives {got} for images {list(shape)}; it has to give logits {[shape[0], num_classes]}",
        )
