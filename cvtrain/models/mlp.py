"""`MLP`: a multi-layer perceptron on flattened images."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from cvtrain.config.schema.model import MLPConfig
from cvtrain.models.built import BuiltModel
from cvtrain.models.layer_groups import group_by_depth

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
# Standard deviation of the output layer: small, so that training starts at a loss of ln(num_classes).
_HEAD_STD = 0.01


class MLP(nn.Module):
    """flatten -> [linear -> norm -> activation -> dropout] per hidden layer -> linear.

    Initialisation: hidden weights by He et al. 2015 (normal, fan in, gain sqrt(2); Glorot's uniform with gain 5/3 for
    tanh), the head's weights normal with standard deviation 0.01, biases 0. A linear layer before batch norm has no
    bias: the norm would take it away.

    Args:
        in_features: values per image, C * H * W.
        num_classes: outputs.
        hidden: widths of the hidden layers; empty: a linear classifier.
        activation: relu, gelu, silu or tanh.
        norm: none, batch or layer.
        dropout: probability of dropping a hidden unit, in [0, 1).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (512, 512),
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        widths = [in_features, *hidden]
        self.hidden = nn.Sequential(
            *(_hidden_layer(before, after, activation, norm, dropout) for before, after in pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], num_classes)
        nn.init.normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, C, H, W) float with C * H * W = in_features -> logits (B, num_classes)."""
        features = images.flatten(1)  # (B, C * H * W)
        if features.shape[1] != self.in_features:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} have {features.shape[1]} values; "
                f"this MLP was built for {self.in_features}"
            )
        return self.head(self.hidden(features))


def _hidden_layer(before: int, after: int, activation: str, norm: str, dropout: float) -> nn.Sequential:
    linear = nn.Linear(before, after, bias=norm != "batch")
    if activation == "tanh":
        nn.init.xavier_uniform_(linear.weight, gain=nn.init.calculate_gain("tanh"))
    else:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    parts: OrderedDict[str, nn.Module] = OrderedDict(linear=linear)
    norm_class = _NORMS[norm]
    if norm_class is not None:
        parts["norm"] = norm_class(after)
    parts["activation"] = _ACTIVATIONS[activation]()
    if dropout > 0:
        parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)


def build_mlp(config: MLPConfig, *, num_classes: int, channels: int, image_size: int) -> BuiltModel:
    """The MLP of `config` for images (channels, image_size, image_size)."""
    module = MLP(
        channels * image_size * image_size,
        num_classes,
        hidden=config.hidden,
        activation=config.activation.value,
        norm=config.norm.value,
        dropout=config.dropout,
    )
    return BuiltModel(module, ("head",), group_by_depth(module, ("head",)))
