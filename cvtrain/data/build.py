"""From the config to the loaders of a run."""

import functools
import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.machine import usable_cores
from cvtrain.config.schema.data import (
    Balance,
    DataConfig,
    DatasetConfig,
    DecodedDataConfig,
    DeviceCache,
    Interpolation,
    OnBadImage,
    Resize,
)
from cvtrain.config.schema.root import Config
from cvtrain.data.augment.build import build_train_transform
from cvtrain.data.balance import oversampling_weights
from cvtrain.data.cache.build import build_loader, cache_splits
from cvtrain.data.cache.device_cache import DeviceLoader, can_be_resident, fits_on_device, resident_bytes
from cvtrain.data.images.resize import EvalTransform, build_eval_transform
from cvtrain.data.loader.batch import Batch, BatchDataset, TrainTransform
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.num_workers import WorkerChoice, choose_num_workers
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.sources.source import ImageSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = ["Batch", "BatchDataset", "BatchLoader", "EpochSampler", "Loaders", "build_eval_loader", "build_loaders"]

log = logging.getLogger(__name__)

# Where neither the user nor the weights have one: 256 for a crop of 224.
DEFAULT_CROP_FRACTION = 0.875

# Images at once while a split is copied to the device.
_FILL_BATCH = 256


@dataclass
class Loaders:
    """The loaders of a run; `val` selects, `test` is scored once."""

    train: BatchLoader
    val: BatchLoader
    test: BatchLoader | None

    def parts(self) -> dict[str, BatchLoader]:
        """The loaders that exist, by split."""
        parts = {"train": self.train, "val": self.val}
        return parts if self.test is None else {**parts, "test": self.test}

    def close(self) -> None:
        """End the workers of all of them."""
        for loader in self.parts().values():
            loader.close()


def build_loaders(
    config: Config,
    splits: Splits,
    *,
    device: torch.device,
    world: ProcessGroup = SINGLE_PROCESS,
    batch_norm: bool = False,
) -> Loaders:
    """Build the loaders of a run.

    Images in files are decoded once, as `data.cache` says.

    Training: shuffled, `data.batch_size` images per batch, augmented as `config.augment` says, sampled by class weight
    with `data.balance=oversample`. Evaluation: in order, each image once; `trainer.limit_val_batches` takes images
    spread evenly over the split. With `trainer.overfit_one_batch` both show the first training batch, resized as for
    evaluation, and there is no test. Each of several ranks gets its part of every batch.

    Args:
        batch_norm: the network needs two images of each rank in a training batch. A last batch that has fewer is left
            out.

    Raises:
        ConfigError: no batch has enough images for a step.
    """
    min_share = 2 if batch_norm else 1
    if config.trainer.overfit_one_batch:
        return _build_overfit_loaders(config, splits, device=device, world=world, min_share=min_share)
    data, seed, limit = config.data, config.seed, config.trainer.limit_val_batches

    # Transforms, and the resize of what is cached for them
    eval_resize = eval_transform_of(data)
    transform = build_train_transform(
        config.augment, image_size=data.image_size, channels=data.channels, eval_transform=eval_resize
    )
    crops_itself = transform is not None and transform.resize is None
    train_resize = _build_cached_resize(data) if crops_itself else eval_resize
    splits = cache_splits(data, splits, train_resize=train_resize, eval_resize=eval_resize, world=world)

    # Loaders
    plan = _build_train_sampler(config, splits, world, min_share)
    check_enough_images(plan)
    train = _build_loader(
        data, splits.train, plan, transform, seed=seed, device=device, num_views=config.augment.views, world=world
    )
    build_eval = functools.partial(build_eval_loader, data, seed=seed, device=device, limit_batches=limit, world=world)
    loaders = Loaders(train, build_eval(splits.val), None if splits.test is None else build_eval(splits.test))
    loaders = _with_device_cache(data, loaders, seed=seed, device=device, world=world)
    _log_num_workers(data, loaders.train, device=device, world=world)
    return loaders


def build_eval_loader(
    config: DataConfig,
    source: ImageSource,
    *,
    device: torch.device,
    seed: int = 0,
    batch_size: int | None = None,
    limit_batches: int | None = None,
    world: ProcessGroup = SINGLE_PROCESS,
) -> BatchLoader:
    """Build a loader that shows each image of `source` once, in order, resized by `data.resize`.

    `batch_size` defaults to `data.eval_batch_size`, and that to `data.batch_size`.
    """
    size = batch_size or config.eval_batch_size or config.batch_size
    plan = EpochSampler(
        len(source), size, seed, False, limit_batches=limit_batches, rank=world.rank, world_size=world.world_size
    )
    return _build_loader(config, source, plan, None, seed=seed, device=device, world=world)


def check_enough_images(plan: EpochSampler) -> None:
    """Raise ConfigError if no step can be taken; log the images of a last batch that no step is taken on."""
    if plan.batch_size < plan.world_size:
        raise ConfigError(
            "data.batch_size",
            plan.batch_size,
            f"has to be at least the number of processes, {plan.world_size}, which split each batch",
            "use a larger batch, or fewer processes",
        )
    each = "two for batch norm" if plan.min_share == 2 else "one"
    needs = each if plan.world_size == 1 else f"{each} for each of {plan.world_size} processes"
    if plan.num_batches == 0:
        raise ConfigError(
            "data",
            rule=f"train has {plan.num_left_out} images, and a step needs {needs}",
            remedy="add images, or use fewer processes or a model without batch norm",
        )
    if plan.num_left_out:
        log.info(
            "train: %d of %d images are left out of each epoch: too few for a last batch, which needs %s",
            plan.num_left_out,
            plan.num_images + plan.num_left_out,
            needs,
        )


# ---------------------------------------------------------------- loaders


def _build_overfit_loaders(
    config: Config, splits: Splits, *, device: torch.device, world: ProcessGroup, min_share: int
) -> Loaders:
    """Train and val that both show the first training batch."""
    data, seed = config.data, config.seed
    resize = eval_transform_of(data)
    # Of the shuffled order, since the first files of a folder are all of one class.
    first = np.unique(_build_train_sampler(config, splits, world, min_share).order(0)[: data.batch_size])
    source = cache_splits(data, splits, train_resize=resize, eval_resize=resize, world=world).train
    plan = EpochSampler(
        len(source),
        data.batch_size,
        seed,
        False,
        subset=first,
        min_share=min_share,
        rank=world.rank,
        world_size=world.world_size,
    )
    check_enough_images(plan)
    train, val = (_build_loader(data, source, plan, None, seed=seed, device=device, world=world) for _ in range(2))
    return Loaders(train, val, None)


def _build_train_sampler(config: Config, splits: Splits, world: ProcessGroup, min_share: int) -> EpochSampler:
    weights = None
    if config.data.balance is Balance.oversample:
        weights = oversampling_weights(splits.train.labels, len(splits.classes))
    return EpochSampler(
        len(splits.train),
        config.data.batch_size,
        config.seed,
        True,
        weights,
        limit_batches=config.trainer.limit_train_batches,
        rank=world.rank,
        world_size=world.world_size,
        min_share=min_share,
    )


def _build_loader(
    config: DataConfig,
    source: ImageSource,
    plan: EpochSampler,
    train_transform: TrainTransform | None,
    *,
    seed: int,
    device: torch.device,
    world: ProcessGroup,
    num_views: int | None = None,
) -> BatchLoader:
    dataset = BatchDataset(
        source=source,
        eval_transform=eval_transform_of(config),
        train_transform=train_transform,
        image_size=config.image_size,
        channels=config.channels,
        seed=seed,
        num_views=num_views,
    )
    return build_loader(
        dataset=dataset,
        plan=plan,
        num_workers=_choose_num_workers(config, dataset, plan, device=device, world=world).num_workers,
        prefetch_batches=config.prefetch_batches,
        pin_memory=device.type == "cuda",
        skip_bad_images=isinstance(config, DecodedDataConfig) and config.on_bad_image is OnBadImage.skip,
    )


# ---------------------------------------------------------------- transforms


def eval_transform_of(config: DataConfig) -> EvalTransform:
    """Return the resize that evaluation has, and training without a random crop."""
    return build_eval_transform(
        image_size=config.image_size,
        resize=config.resize.value,
        crop_fraction=config.crop_fraction or DEFAULT_CROP_FRACTION,
        interpolation=_interpolation(config),
    )


def resolve_resize(config: DataConfig, interpolation: str | None, crop_fraction: float | None) -> DataConfig:
    """Return `config` with the resize that the weights were evaluated with, where it names none of its own."""
    kernel, fraction = config.interpolation, config.crop_fraction
    if kernel is Interpolation.auto:
        kernel = Interpolation(interpolation or "bilinear")
    if fraction is None:
        fraction = DEFAULT_CROP_FRACTION if crop_fraction is None else crop_fraction
    return replace(config, interpolation=kernel, crop_fraction=fraction)


def _build_cached_resize(config: DataConfig) -> EvalTransform:
    """Return the cached size for an augmentation that crops: a short side a little above the crop, aspect kept."""
    fraction = config.crop_fraction if config.resize is Resize.resize_crop else None
    return build_eval_transform(
        image_size=config.image_size,
        resize="resize_crop",
        crop_fraction=fraction or DEFAULT_CROP_FRACTION,
        interpolation=_interpolation(config),
    )


def _interpolation(config: DataConfig) -> str:
    return "bilinear" if config.interpolation is Interpolation.auto else config.interpolation.value


# ---------------------------------------------------------------- device cache


def _with_device_cache(
    config: DataConfig, loaders: Loaders, *, seed: int, device: torch.device, world: ProcessGroup
) -> Loaders:
    """Return the same loaders, with train and val in memory of the device by `data.device_cache`.

    The test split is read once, so that caching it would not pay. The train split of a Dataset of the user's, which may
    give another image in each epoch, is cached by `always` only.
    """
    parts = {"train": loaders.train, "val": loaders.val}
    if isinstance(config, DatasetConfig) and config.device_cache is DeviceCache.auto:
        del parts["train"]
    cached = {split: loader for split, loader in parts.items() if can_be_resident(loader, loader.plan)}
    if not fits_on_device(config.device_cache, sum(map(resident_bytes, cached.values())), device):
        return loaders
    for split, loader in cached.items():
        source = loader.dataset.source
        in_order = EpochSampler(len(source), _FILL_BATCH, seed, False)
        filler = _build_loader(config, source, in_order, None, seed=seed, device=device, world=world)
        cached[split] = DeviceLoader(filler=filler, plan=loader.plan, device=device, split=split)
    if "train" not in cached and config.device_cache is DeviceCache.always:
        log.warning(
            "data.device_cache=always: train cannot be kept on the device: %s", _device_cache_obstacle(loaders.train)
        )
    return replace(loaders, **cached)


def _device_cache_obstacle(loader: BatchLoader) -> str:
    if loader.dataset.train_transform is not None:
        return "augment.transforms change its images one by one (augment=small_batch changes whole batches)"
    return "an epoch does not take all of its images"


# ---------------------------------------------------------------- workers


def _choose_num_workers(
    config: DataConfig, dataset: BatchDataset, plan: EpochSampler, *, device: torch.device, world: ProcessGroup
) -> WorkerChoice:
    if isinstance(config.num_workers, int):
        return WorkerChoice(config.num_workers, "data.num_workers")
    assert config.num_workers == "auto", config.num_workers
    return choose_num_workers(
        is_in_memory=dataset.is_ready_made,
        num_images=plan.num_images,
        num_batches=plan.num_batches,
        num_cores=usable_cores(),
        num_ranks=world.local_world_size,
        on_cpu=device.type == "cpu",
    )


def _log_num_workers(config: DataConfig, train: BatchLoader, *, device: torch.device, world: ProcessGroup) -> None:
    if config.num_workers != "auto" or not world.is_main_process:
        return
    reason = "images are on the device"
    if not isinstance(train, DeviceLoader):
        reason = _choose_num_workers(config, train.dataset, train.plan, device=device, world=world).reason
    log.info("data workers: %d (auto: %s)", train.num_workers, reason)
