"""Features of all images of a set by a backbone with weights, for `check`."""

import logging
from dataclasses import replace

import numpy as np
import torch

from cvtrain.check.measure import CheckedImages
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.root import Config
from cvtrain.data.build import build_eval_loader, resolve_resize
from cvtrain.distributed.process_group import SINGLE_PROCESS
from cvtrain.models.backbone import pool_features
from cvtrain.models.dry_run import evaluation_mode
from cvtrain.runtime.device import select_device
from cvtrain.runtime.progress import Progress
from cvtrain.training.build import build_network
from cvtrain.training.features import Backbone

log = logging.getLogger(__name__)

# Numbers that are kept: 2 GiB.
MAX_NUMBERS = 2**29


def compute_image_features(
    config: CheckConfig, images: CheckedImages, progress: Progress
) -> tuple[np.ndarray, torch.Tensor]:
    """Return the images that could be read, (M,) int64, and what a head would receive for each, (M, D) on the CPU.

    Features with places or tokens are averaged over these.

    Raises:
        ConfigError: the weights cannot be had, do not fit, or have no head; or the features take too much memory.
    """
    device = select_device(config.device, key="device")
    settings = Config(data=config.data, model=config.model)
    built, model, normalizer = build_network(settings, len(images.classes), device, None, SINGLE_PROCESS)
    if not built.head:
        raise ConfigError("model", config.model.name, "no part of it is its head, so there are no features before it")
    data = resolve_resize(config.data, built.interpolation, built.crop_fraction)
    backbone = Backbone(model, built.head, normalizer, device, torch.float32)
    rows, features = [], []
    progress.start("features", len(images))
    with evaluation_mode(model):
        for start, source in zip(images.starts, images.sources, strict=False):
            loader = build_eval_loader(replace(data), source, device=device)
            try:
                for batch in loader.raw_batches(0):
                    if len(batch):
                        rows.append(batch.indices.numpy() + start)
                        features.append(pool_features(backbone(batch.images)).cpu())
                        _check_room(len(images), features[0])
                    progress.advance(len(batch) + len(batch.bad))
            finally:
                loader.close()
    progress.close()
    return np.concatenate(rows), torch.cat(features)


def _check_room(num_images: int, first: torch.Tensor) -> None:
    if num_images * first.shape[1] > MAX_NUMBERS:
        raise ConfigError(
            "model",
            rule=f"{num_images:,} images with {first.shape[1]:,} features each take more than 2 GiB",
            remedy="leave model out, or check a part of the images",
        )
