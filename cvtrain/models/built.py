"""`BuiltModel`: a network and what the rest of a run has to know about it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class BuiltModel:
    """A network on the CPU in float32, in training mode, with the facts that optimizer, data and trainer need.

    Attributes:
        module: images (B, C, S, S) float, normalised -> logits (B, num_classes). In training mode networks with
            auxiliary heads return torchvision's named tuple instead (`logits` first).
        head: names of the submodules that give one output per class, the main one first, auxiliary ones after it;
            empty only if a user's model has no linear or convolutional layer.
        layers: parameter names grouped by depth, input first, the head's last; each name exactly once.
        mean, std: per-channel statistics, of values in 0..1, that the loaded weights expect; None: the data's own.
        interpolation, crop_fraction: of the resize that the loaded weights were evaluated with; None: not known.
        is_pretrained: the backbone starts from weights that were loaded.
        new_head: the head starts anew, rather than with values that were loaded.
        convolutional: True if convolutions do the bulk of the work, so that the channels_last layout pays.
        aux_loss_weight: weight of each auxiliary head's loss; 0 where there is none.
        fixed: names of parameters that the model's author made untrainable; unfreezing leaves them so.
        calibrate: sets weights of `module` by a look at (B, C, S, S) normalised training images; to be called once,
            before a new run trains. None: there is nothing to set.
    """

    module: nn.Module
    head: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None
    is_pretrained: bool = False
    new_head: bool = True
    convolutional: bool = False
    aux_loss_weight: float = 0.0
    fixed: frozenset[str] = frozenset()
    calibrate: Callable[[torch.Tensor], None] | None = None


def is_convolutional(module: nn.Module) -> bool:
    """True if `module` has a Conv2d other than patch embeddings and other kernels that do not overlap.

    A kernel as large as its stride, 1x1 included, is a matrix product on separate patches.
    """
    return any(isinstance(layer, nn.Conv2d) and layer.kernel_size != layer.stride for layer in module.modules())
