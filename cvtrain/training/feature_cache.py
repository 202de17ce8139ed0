"""Whether the head trains on kept features, and the parts of a run that then change."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cvtrain.config.checks.features import Blocker, feature_obstacle
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config
from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.build import Loaders
from cvtrain.data.cache.budget import free_memory, gib, memory_budget
from cvtrain.data.loader.prefetch import to_device
from cvtrain.data.normalize import Normalizer
from cvtrain.models.backbone import FeatureSpec, SplitError, check_backbone, compute_features
from cvtrain.models.built import BuiltModel
from cvtrain.models.freeze import train_mode
from cvtrain.runtime.precision import autocast
from cvtrain.training.feature_loader import FeatureLoader

log = logging.getLogger(__name__)

# Of a GPU's free memory, what features may take before they are kept on the host.
_DEVICE_SHARE = 4


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone: from a batch of uint8 images on the host to features, computed as in a training step."""

    model: nn.Module
    heads: tuple[str, ...]
    normalizer: Normalizer
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, S, S) uint8 to (B, ...), in as many parts as the device's memory asks for."""
        try:
            inputs = self.normalizer(to_device(images, self.device))
            with autocast(self.device, self.dtype):
                return compute_features(self.model, self.heads[0], inputs)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        return torch.cat([self(part) for part in images.tensor_split(2)])

    def examine(self, shape: tuple[int, int, int]) -> FeatureSpec:
        """See `check_backbone`; tried on two images of noise of `shape` (C, S, S)."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator)
        inputs = self.normalizer(images.to(self.device))
        with autocast(self.device, self.dtype):
            return check_backbone(self.model, self.heads[0], inputs)


@dataclass(frozen=True)
class CachedFeatures:
    """What stands in for the loaders of images, and the name of the part of the network that takes their batches."""

    train: FeatureLoader
    val: FeatureLoader
    head: str

    def enter(self, network: nn.Module) -> nn.Module:
        """Where batches of features enter `network`: at its head."""
        return network.get_submodule(self.head)


def build_features(
    config: Config,
    built: BuiltModel,
    backbone: Backbone,
    loaders: Loaders,
    batch_transform: BatchTransform,
    *,
    should_stop: Callable[[], bool],
) -> CachedFeatures | None:
    """The feature mode of a run, or None, where each step goes through the whole network. The log says which and why.

    Raises:
        ConfigError: `model.cache_features=true`, and it cannot be.
    """
    if config.model.freeze is Freeze.none:
        return None
    if config.model.cache_features is False:
        log.info("features: not kept (model.cache_features=false): each step goes through the backbone")
        return None
    data, num_views = config.data, config.augment.views or 1
    obstacle = (
        feature_obstacle(config)
        or _network_obstacle(built)
        or _transform_obstacle(batch_transform)
        or _processes_obstacle(loaders)
    )
    if obstacle is None:
        # From here on the backbone is one fixed function; what the loop sets later is the same.
        train_mode(backbone.model, built.head, backbone_frozen=True)
        try:
            form = backbone.examine((data.channels, data.image_size, data.image_size))
        except SplitError as error:
            obstacle = Blocker(str(error), "name the part that trains with model.head, or leave it out")
    if obstacle is None:
        num_bytes = (loaders.train.num_images * num_views + loaders.val.num_images) * form.num_bytes
        obstacle = _room_obstacle(num_bytes)
    if obstacle is not None:
        _decline(config, obstacle)
        return None
    place = _place(backbone.device, num_bytes)
    log.info(
        "features: computed once and kept, %s%s values per image, %.1f MiB: the head trains on them",
        "" if config.augment.views is None else f"{num_views} views, ",
        "x".join(map(str, form.shape)),
        num_bytes / 2**20,
    )
    loader = functools.partial(FeatureLoader, compute=backbone, form=form, device=place, should_stop=should_stop)
    return CachedFeatures(
        train=loader(images=loaders.train, num_views=num_views),
        val=loader(images=loaders.val),
        head=built.head[0],
    )


def _network_obstacle(built: BuiltModel) -> Blocker | None:
    if len(built.head) > 1:
        return Blocker("the network has auxiliary heads inside its backbone", "set model.aux_loss_weight=0")
    return None


def _transform_obstacle(batch_transform: BatchTransform) -> Blocker | None:
    if batch_transform.active:
        return Blocker("augmentation on the device changes images anew in each step", "set augment=none")
    return None


def _processes_obstacle(loaders: Loaders) -> Blocker | None:
    if loaders.train.plan.world_size > 1:
        return Blocker("several processes train this run", "train in one process: there is little left to share")
    return None


def _room_obstacle(num_bytes: int) -> Blocker | None:
    room = memory_budget(None, free_memory())
    if num_bytes <= room:
        return None
    return Blocker(
        f"they would take {gib(num_bytes)}, and {gib(room)} of memory may be taken, half of what is free",
        "set fewer augment.views, or leave it out",
    )


def _decline(config: Config, obstacle: Blocker) -> None:
    if config.model.cache_features:
        raise ConfigError("model.cache_features", True, f"cannot be: {obstacle.rule}", obstacle.remedy)
    log.info(
        "features: not kept, since %s: each step goes through the frozen backbone. To keep them, %s",
        obstacle.rule,
        obstacle.remedy,
    )


def _place(device: torch.device, num_bytes: int) -> torch.device:
    """Where features are kept: on a GPU if they are a small part of what is free there, else on the host."""
    if device.type == "cuda" and num_bytes <= torch.cuda.mem_get_info(device)[0] // _DEVICE_SHARE:
        return device
    return torch.device("cpu")
