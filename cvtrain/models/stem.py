"""The first layers of a convolutional network, fitted to grey or to small images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cvtrain.config.architectures import STEM_FAMILIES
from cvtrain.models.weights import with_metadata


def find_input_conv(module: nn.Module) -> str:
    """Name of the convolution that sees the RGB image: the first one with three input channels."""
    return next(
        name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3
    )


def make_grey(module: nn.Module, name: str) -> None:
    """Replace the RGB convolution `name` by one for grey images, of the same name.

    Its kernel is the sum of the three colours' kernels, so that for a grey image the result is what the RGB network
    gives for the image repeated three times (timm does so too). What the network has learnt is kept.
    """
    conv = module.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    # The same layer with one input channel; its class, padding and stride stay.
    grey = nn.Conv2d(
        1,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    grey.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))
    if conv.bias is not None:
        grey.bias = nn.Parameter(conv.bias.detach().clone())
    _replace(module, name, grey)


def grey_state(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A state dict of an RGB network as one of the network after `make_grey`; one for grey images comes back as is."""
    key = f"{name}.weight"
    weight = state.get(key)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 4 or weight.shape[1] != 3:
        return state
    return with_metadata({**state, key: weight.sum(dim=1, keepdim=True)}, state, {})


def has_small_stem(arch: str) -> bool:
    """True for torchvision's families whose stem can be chosen."""
    return arch.startswith(STEM_FAMILIES)


def make_small_stem(module: nn.Module) -> None:
    """Give a ResNet the stem of He et al. 2016 for CIFAR: a 3x3 convolution with stride 1, and no max pooling.

    The ImageNet stem leaves an 8x8 map of a 32x32 image before the first block; this one leaves 32x32. Names of
    parameters stay; the new kernel has torchvision's initialisation for ResNets (Kaiming normal, fan out).
    """
    old = module.get_submodule("conv1")
    assert isinstance(old, nn.Conv2d)
    conv = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    _replace(module, "conv1", conv)
    _replace(module, "maxpool", nn.Identity())


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)
