"""What a checkpoint says about itself, for whoever uses the model without the run."""

from pathlib import Path
from typing import Any

import torch

from cvtrain import __version__
from cvtrain.config.redact import redact
from cvtrain.config.schema.data import PATH_SETTINGS, DataConfig
from cvtrain.config.schema.root import Config
from cvtrain.config.serialize import schema_names, to_plain
from cvtrain.data.normalize import Normalizer
from cvtrain.runtime.precision import precision_name


def checkpoint_metadata(
    config: Config,
    data: DataConfig,
    classes: tuple[str, ...],
    normalizer: Normalizer,
    dtype: torch.dtype,
    total_steps: int,
) -> dict[str, Any]:
    """Return the entries of a checkpoint that tell a stranger how to prepare an image and read the answer.

    Args:
        config: as the user set it.
        data: its data, with what followed from the weights.
    """
    return {
        "config": redact(to_plain(config)),
        "schemas": schema_names(config),
        "paths": absolute_paths(config),
        "classes": list(classes),
        "preprocessing": {
            "image_size": data.image_size,
            "channels": data.channels,
            "resize": data.resize.value,
            "crop_fraction": data.crop_fraction,
            "interpolation": data.interpolation.value,
            "mean": normalizer.mean.flatten().tolist(),
            "std": normalizer.std.flatten().tolist(),
        },
        "precision": precision_name(dtype),
        "planned_steps": total_steps,
        "versions": {"cvtrain": __version__, "torch": str(torch.__version__)},
    }


def absolute_paths(config: Config) -> dict[str, str]:
    """Return where the relative paths of the data are, for an evaluation in another working folder."""
    typed = {f"data.{name}": getattr(config.data, name, None) for name in PATH_SETTINGS}
    return {key: str(Path(path).expanduser().absolute()) for key, path in typed.items() if path}
