"""The head of a network: the layers that give one output per class."""

import torch
from torch import nn

from cvtrain.config.errors import ConfigError

# torchvision's names for the part that ends in the head, and for auxiliary heads.
_TORCHVISION_ENDS = ("fc", "classifier", "heads", "head")
_TORCHVISION_AUXILIARY_HEADS = ("aux1.fc2", "aux2.fc2", "AuxLogits.fc")


def last_layer(module: nn.Module, prefix: str = "") -> str | None:
    """Name of the last linear or convolutional layer of `module`, by order of definition; None if it has none.

    Args:
        prefix: look only at this submodule and what is in it.
    """
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) and is_inside(name, (prefix,))
    ]
    return names[-1] if names else None


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """True if the parameter or submodule `name` is one of `modules` or lies in one; "" is the whole network."""
    return any(not module or name == module or name.startswith(f"{module}.") for module in modules)


@torch.no_grad()
def init_head(module: nn.Module, head: tuple[str, ...]) -> None:
    """Start new heads at logits of 0, so that the first loss is ln(num_classes) whatever the backbone's features.

    Architectures bring rules of their own, made for 1,000 classes: EfficientNet's gives 2 classes a standard deviation
    of 0.4. A convolution keeps small values instead (normal, 1e-4): squeezenet has a ReLU behind its head, which lets
    no gradient through at 0.
    """
    for name in head:
        last = last_layer(module, name)
        layer = module.get_submodule(last) if last is not None else nn.Identity()
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=1e-4)
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def torchvision_head(module: nn.Module) -> tuple[str, ...]:
    """Names of the head and of the auxiliary heads of a torchvision classification network, the main one first.

    torchvision ends its networks in one of `fc`, `classifier`, `heads`, `head`; the head is the last layer there
    (a 1x1 convolution in squeezenet).
    """
    children = dict(module.named_children())
    end = next(name for name in _TORCHVISION_ENDS if name in children)
    main = last_layer(module, end)
    assert main is not None, f"{type(module).__name__}.{end} has no layer"
    submodules = dict(module.named_modules())
    return (main, *(name for name in _TORCHVISION_AUXILIARY_HEADS if name in submodules))


def named_head(module: nn.Module, name: str) -> str:
    """`name` itself, once it is sure that it is a submodule with parameters.

    Raises:
        ConfigError: there is no such submodule, or it has no parameter.
    """
    with_parameters = [
        child for child, layer in module.named_modules() if child and next(layer.parameters(), None) is not None
    ]
    if name in with_parameters:
        return name
    known = name in dict(module.named_modules())
    raise ConfigError(
        key="model.head",
        value=name,
        rule="has no parameters" if known else f"is no submodule of {type(module).__name__}",
        remedy="submodules with parameters: " + ", ".join(with_parameters[-20:]),
    )
