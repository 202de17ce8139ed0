"""Features of a frozen backbone, computed once and kept: batches of features, which the head takes as images."""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from cvtrain.config.checks.features import Blocker, feature_obstacle
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config
from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.build import Batch, BatchLoader, Loaders
from cvtrain.data.cache.budget import free_memory, gib, memory_budget
from cvtrain.data.loader.prefetch import to_device
from cvtrain.data.normalize import Normalizer
from cvtrain.models.backbone import FeatureSpec, SplitError, check_backbone, compute_features
from cvtrain.models.built import BuiltModel
from cvtrain.models.freeze import train_mode
from cvtrain.runtime.precision import autocast

log = logging.getLogger(__name__)

# Of a GPU's free memory, what features may take before they are kept on the host.
_DEVICE_SHARE = 4

# A batch of uint8 images on the host to its features (B, ...).
Compute = Callable[[torch.Tensor], torch.Tensor]


class FeatureTable:
    """Rows of features, in the order in which they come.

    Args:
        form: of one row.
        num_rows: how many there will be at most.
        num_images: size of the source, whose places the rows are found by.
        device: where the rows are kept.
    """

    def __init__(self, form: FeatureSpec, *, num_rows: int, num_images: int, device: torch.device) -> None:
        self.form = form
        self.is_complete = False
        # Pages that are not written yet take no memory.
        self._rows = torch.empty((num_rows, *form.shape), dtype=form.dtype, device=device)
        self._row_of = np.full(num_images, -1, dtype=np.int64)
        self._num_rows = 0

    def clear(self) -> None:
        """Drop all rows."""
        self.is_complete, self._num_rows = False, 0
        self._row_of.fill(-1)

    def put(self, indices: np.ndarray, features: torch.Tensor) -> None:
        """Keep `features` (B, ...) as those of the images at `indices` (B,) int64."""
        first, last = self._num_rows, self._num_rows + len(indices)
        self._rows[first:last] = features
        self._row_of[indices] = np.arange(first, last)
        self._num_rows = last

    def has(self, indices: np.ndarray) -> np.ndarray:
        """Return (B,) bool: which of the images at `indices` have a row. The others could not be read."""
        return self._row_of[indices] >= 0

    def take(self, indices: np.ndarray) -> torch.Tensor:
        """Return the features (B, ...) of the images at `indices`, all of which have a row."""
        rows = torch.from_numpy(self._row_of[indices]).to(self._rows.device)
        return self._rows.index_select(0, rows).contiguous(memory_format=self.form.memory_format)


class FeatureLoader:
    """Stands in for a `BatchLoader`: the same batches, of features instead of images.

    Epoch e shows view e mod `num_views`. The features of view v are those of the images in epoch v of `images`,
    computed in that epoch's batches: while that epoch trains, or beforehand in a run that resumes later. So they are
    the same to the bit before and after a restart.

    Args:
        images: the loader of the images; its epoch v shows every image that a later epoch can ask for.
        compute: the frozen backbone.
        form: of the features of an image.
        num_views: how many versions of each image there are.
        device: where the features are kept.
        should_stop: asked while features are computed that no epoch shows yet; then the epoch ends at once.

    Attributes:
        bad_images: what could not be read so far, by index; shared with `images`.
    """

    def __init__(
        self,
        *,
        images: BatchLoader,
        compute: Compute,
        form: FeatureSpec,
        num_views: int = 1,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.images = images
        self.compute = compute
        self.form = form
        self.num_views = num_views
        self.should_stop = should_stop
        self.bad_images = images.bad_images
        source = images.dataset.source
        self._labels = torch.from_numpy(np.asarray(source.labels, dtype=np.int64)).to(device)
        self._tables = [
            FeatureTable(form, num_rows=images.num_images, num_images=len(source), device=device)
            for _ in range(num_views)
        ]

    @property
    def batch_size(self) -> int:
        return self.images.batch_size

    @property
    def num_batches(self) -> int:
        return self.images.num_batches

    @property
    def num_images(self) -> int:
        return self.images.num_images

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (0-based) from number `start_batch` on, with features for images.

        Raises:
            BadImageError, DataWorkerError: as `BatchLoader.epoch`, while features are computed.
        """
        view = epoch % len(self._tables)
        table = self._tables[view]
        if not table.is_complete:
            filled = self._fill(table, view)
            if (epoch, start_batch) == (view, 0):
                yield from filled
                return
            for _ in filled:
                if self.should_stop():
                    return
        for key in self.images.plan.batches(epoch, start_batch):
            there = table.has(key.indices)
            indices = key.indices[there]
            bad = [self.bad_images[index] for index in key.indices[~there].tolist()]
            places = torch.from_numpy(indices)
            labels = self._labels.index_select(0, places.to(self._labels.device))
            yield Batch(table.take(indices), labels, places, bad, epoch, key.number)

    def start(self) -> None:
        """Start the workers of `images`, if features are to be computed."""
        if not all(table.is_complete for table in self._tables):
            self.images.start()

    def close(self) -> None:
        """End the workers of `images`."""
        self.images.close()

    def _fill(self, table: FeatureTable, view: int) -> Iterator[Batch]:
        """Compute the features of `view`, batch by batch."""
        table.clear()
        for batch in self.images.epoch(view):
            features = torch.empty((0, *self.form.shape), dtype=self.form.dtype)
            if len(batch):
                features = self.compute(batch.images)
                table.put(batch.indices.numpy(), features)
            yield replace(batch, images=features, labels=batch.labels.to(features.device))
        table.is_complete = True
        if all(table.is_complete for table in self._tables):
            self.images.close()


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
        """Compute features (B, ...) of images (B, C, S, S) uint8, in as many parts as the device's memory needs."""
        try:
            inputs = self.normalizer(to_device(images, self.device))
            with autocast(self.device, self.dtype):
                return compute_features(self.model, self.heads[0], inputs)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        return torch.cat([self(part) for part in images.tensor_split(2)])

    def examine(self, shape: tuple[int, int, int]) -> FeatureSpec:
        """Call `check_backbone` on two images of noise of `shape` (C, S, S)."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator)
        inputs = self.normalizer(images.to(self.device))
        with autocast(self.device, self.dtype):
            return check_backbone(self.model, self.heads[0], inputs)


@dataclass(frozen=True)
class CachedFeatures:
    """Stands in for the loaders of images; `head` names the part of the network that takes their batches."""

    train: FeatureLoader
    val: FeatureLoader
    head: str

    def head_of(self, network: nn.Module) -> nn.Module:
        """Return the part of `network` that takes batches of features: its head."""
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
    """Return the cached features of a run; None: each step goes through the whole network. The log says which and why.

    Raises:
        ConfigError: `model.cache_features=true`, and it cannot be.
    """
    if config.model.freeze is Freeze.none or config.trainer.epochs == 0:
        return None
    if config.model.cache_features is False:
        log.info("features: not kept (model.cache_features=false): each step goes through the backbone")
        return None
    data, num_views = config.data, config.augment.views or 1
    blocker = (
        feature_obstacle(config)
        or _network_blocker(built)
        or _transform_blocker(batch_transform)
        or _loader_blocker(loaders)
    )
    if blocker is None:
        # From here on the backbone is one fixed function; what the loop sets later is the same.
        train_mode(backbone.model, built.head, backbone_frozen=True)
        try:
            form = backbone.examine((data.channels, data.image_size, data.image_size))
        except SplitError as error:
            blocker = Blocker(str(error), "name the part that trains with model.head, or leave it out")
    if blocker is None:
        num_bytes = (loaders.train.num_images * num_views + loaders.val.num_images) * form.num_bytes
        blocker = _room_blocker(num_bytes)
    if blocker is not None:
        explain_or_raise(config, blocker)
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


def _network_blocker(built: BuiltModel) -> Blocker | None:
    if len(built.head) > 1:
        return Blocker("the network has auxiliary heads inside its backbone", "set model.aux_loss_weight=0")
    return None


def _transform_blocker(batch_transform: BatchTransform) -> Blocker | None:
    if batch_transform.active:
        return Blocker("augmentation on the device changes images anew in each step", "set augment=none")
    return None


def _loader_blocker(loaders: Loaders) -> Blocker | None:
    if loaders.train.plan.world_size > 1:
        return Blocker("several processes train this run", "train in one process: there is little left to share")
    if loaders.train.plan.num_left_out:
        return Blocker("batch norm in the head leaves other images out in each epoch", "set another data.batch_size")
    return None


def _room_blocker(num_bytes: int) -> Blocker | None:
    room = memory_budget(None, free_memory())
    if num_bytes <= room:
        return None
    return Blocker(
        f"they would take {gib(num_bytes)}, and {gib(room)} of memory may be taken, half of what is free",
        "set fewer augment.views, or leave it out",
    )


def explain_or_raise(config: Config, blocker: Blocker) -> None:
    if config.model.cache_features:
        raise ConfigError("model.cache_features", True, f"cannot be: {blocker.rule}", blocker.remedy)
    log.info(
        "features: not kept, since %s: each step goes through the frozen backbone. To keep them, %s",
        blocker.rule,
        blocker.remedy,
    )


def _place(device: torch.device, num_bytes: int) -> torch.device:
    """Return where features are kept: on a GPU if they take a small part of what is free there, else on the host."""
    if device.type == "cuda" and num_bytes <= torch.cuda.mem_get_info(device)[0] // _DEVICE_SHARE:
        return device
    return torch.device("cpu")
