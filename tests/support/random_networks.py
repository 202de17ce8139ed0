"""Networks of torchvision and timm with random weights."""

import torch

from cvtrain.config.schema.model import TimmModelConfig, TorchvisionModelConfig
from cvtrain.models import build_model


def random_network(name, *, size):
    """Network `LIBRARY/ARCH` for five classes, the same weights each time, none of them all zero.

    Fresh heads and last layers of blocks are zero in some networks, which would hide all that is before them.
    """
    library, _, arch = name.partition("/")
    torch.manual_seed(0)
    config = (TimmModelConfig if library == "timm" else TorchvisionModelConfig)(name=arch, arch=arch, pretrained=False)
    module = build_model(config, num_classes=5, channels=3, image_size=size).module
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return module
