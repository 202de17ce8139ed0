"""What benchmarks inside one process share: waiting for the device, and configs as of the command line."""

import torch

from cvtrain.config.composer import Composer
from cvtrain.config.load import typed_config
from cvtrain.config.overrides import normalize_override
from cvtrain.config.schema.root import Config, register_schemas


def compose(*overrides: str) -> Config:
    """The typed, checked config of `cvtrain OVERRIDES`."""
    register_schemas()
    composer = Composer("train", None, None, None)
    tokens = [normalize_override(token, "train") for token in overrides]
    return typed_config(composer.compose(tokens), composer, tokens)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
