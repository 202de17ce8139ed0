"""`SmallConvNet`: a narrow convolutional network for small photos, made to learn in few epochs."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import SmallConvNetConfig
from cvtrain.models.built import BuiltModel
from cvtrain.models.layer_groups import group_by_depth

# Side of the patches that the first layer looks at.
_PATCH = 2
# Added to the eigenvalues of the patches: directions in which photos hardly vary are not blown up to noise.
_EIGENVALUE_FLOOR = 5e-4


class SmallConvNet(nn.Module):
    """patches -> GELU -> a block per width -> pooling -> linear.

    A block is convolution -> pooling -> norm -> GELU -> convolution -> norm -> GELU.

    After Jordan 2024 ("94% on CIFAR-10 in 3.29 seconds", arXiv 2404.00498), which builds on Page 2019 ("How to train
    your ResNet"): a first layer of 2x2 filters that whiten the patches of the training images, each with both signs;
    3x3 filters that start by handing their input on (Zagoruyko and Komodakis 2017, DiracNets), as far as there are
    input channels, without bias; batch norm with a bias and no scale, whose running statistics follow fast; small
    logits at the start of a high learning rate.

    Args:
        channels: 3 or 1.
        num_classes: outputs.
        widths: channels of each block; each block halves the image.
        logit_scale: factor on the logits.
        whiten: the patch filters are fixed: random until `whiten_patches` is called. False: they are trained.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (64, 256, 256),
        logit_scale: float = 1 / 9,
        whiten: bool = True,
    ) -> None:
        super().__init__()
        num_filters = 2 * channels * _PATCH**2
        self.patches = nn.Conv2d(channels, num_filters, _PATCH)
        self.patches.weight.requires_grad_(not whiten)
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*(_block(before, after) for before, after in pairwise((num_filters, *widths))))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, C, H, W) float -> logits (B, num_classes)."""
        features = self.blocks(F.gelu(self.patches(images)))  # (B, widths[-1], h, w)
        return self.head(features.amax(dim=(2, 3))) * self.logit_scale

    @torch.no_grad()
    def whiten_patches(self, images: torch.Tensor) -> None:
        """Set the first layer's filters so that their outputs on patches of `images` are uncorrelated, of variance 1.

        Args:
            images: (B, C, H, W) float, normalised as in training; some hundreds of photos have patches enough.
        """
        values = F.unfold(images.double().cpu(), _PATCH).transpose(1, 2).flatten(0, 1)  # (patches, C * 4)
        covariance = values.T @ values / len(values)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        # The sign of an eigenvector is the library's choice: both are there, and the larger entry decides the order.
        signs = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True)).sign()
        filters = (eigenvectors * signs / (eigenvalues + _EIGENVALUE_FLOOR).sqrt()).T.flip(0)  # large eigenvalues first
        weight = self.patches.weight
        weight.copy_(torch.cat([filters, -filters]).view(weight.shape))


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=_conv(before, after),
            pool=nn.MaxPool2d(2),
            norm1=_norm(after),
            act1=nn.GELU(),
            conv2=_conv(after, after),
            norm2=_norm(after),
            act2=nn.GELU(),
        )
    )


def _conv(before: int, after: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:before])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def build_small_convnet(config: SmallConvNetConfig, *, num_classes: int, channels: int, image_size: int) -> BuiltModel:
    """The network of `config`.

    Raises:
        ConfigError: the images are too small for so many blocks.
    """
    if (image_size - _PATCH + 1) >> len(config.widths) < 1:
        raise ConfigError(
            key="model.widths",
            value=config.widths,
            rule=f"each width halves the image, and data.image_size={image_size} has not so many halves",
            remedy="list fewer widths, or use a larger data.image_size",
        )
    module = SmallConvNet(
        channels, num_classes, widths=config.widths, logit_scale=config.logit_scale, whiten=config.whiten
    )
    return BuiltModel(
        module,
        ("head",),
        group_by_depth(module, ("head",)),
        convolutional=True,
        fixed=frozenset(name for name, parameter in module.named_parameters() if not parameter.requires_grad),
        calibrate=module.whiten_patches if config.whiten else None,
    )
