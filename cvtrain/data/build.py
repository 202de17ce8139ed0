"""From the config to the loaders of a run."""

import logging
import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import (
    Balance,
    DataConfig,
    DatasetConfig,
    DeviceCache,
    FileDataConfig,
    HuggingFaceConfig,
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
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.sources.source import ImageSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup

__all__ = ["Batch", "BatchDataset", "BatchLoader", "EpochSampler", "Loaders", "build_eval_loader", "build_loaders"]

log = logging.getLogger(__name__)

# More workers than this seldom help one device, and each holds batches in shared memory.
MAX_AUTO_WORKERS = 8

# For data.resize=squash and pad, which have none of their own: 256 for a crop of 224, as resize_crop has by default.
_CACHED_CROP_FRACTION = 0.875

# Images at once while a split is brought to the device.
_FILL_BATCH = 256

# Sources whose images are decoded as they are needed.
_MAY_SKIP = (FileDataConfig, HuggingFaceConfig, DatasetConfig)


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
    """The loaders of a run.

    Images in files are decoded once, as `data.cache` says.

    Training: shuffled, `data.batch_size` images per batch, augmented as `config.augment` says, drawn by class weight
    with `data.balance=oversample`. Evaluation: in order, each image once; `trainer.limit_val_batches` takes images
    spread evenly over the split. With `trainer.overfit_one_batch` both show the first training batch, resized as for
    evaluation, and there is no test. Each rank gets its share of every batch.

    Args:
        batch_norm: the network needs two images of each rank in a training batch. A last batch that has fewer is left
            out.

    Raises:
        ConfigError: no batch has enough images for a step.
    """
    data, seed, limit = config.data, config.seed, config.trainer.limit_val_batches
    min_share = 2 if batch_norm else 1
    plan = _train_plan(config, splits, world, min_share)
    eval_form = _build_config_resize(data)
    if config.trainer.overfit_one_batch:
        splits = cache_splits(data, splits, train_form=eval_form, eval_form=eval_form, world=world)
        # Of the shuffled order, since the first files of a folder are all of one class.
        first = np.unique(plan.order(0)[: data.batch_size])
        plan = EpochSampler(
            len(splits.train),
            data.batch_size,
            seed,
            False,
            subset=first,
            rank=world.rank,
            world_size=world.world_size,
            min_share=min_share,
        )
        refuse_too_few(plan)
        train, val = (
            _build_loader(data, splits.train, plan, None, seed=seed, device=device, world=world) for _ in range(2)
        )
        return Loaders(train, val, None)
    refuse_too_few(plan)
    transform = build_train_transform(
        config.augment, image_size=data.image_size, channels=data.channels, eval_transform=eval_form
    )
    crops_itself = transform is not None and transform.resize is None
    train_form = _build_cached_form(data) if crops_itself else eval_form
    splits = cache_splits(data, splits, train_form=train_form, eval_form=eval_form, world=world)
    loaders = Loaders(
        train=_build_loader(
            data, splits.train, plan, transform, seed=seed, device=device, num_views=config.augment.views, world=world
        ),
        val=build_eval_loader(data, splits.val, seed=seed, device=device, limit_batches=limit, world=world),
        test=None
        if splits.test is None
        else build_eval_loader(data, splits.test, seed=seed, device=device, limit_batches=limit, world=world),
    )
    return _keep_on_device(data, loaders, seed=seed, device=device, world=world)


def _keep_on_device(
    config: DataConfig, loaders: Loaders, *, seed: int, device: torch.device, world: ProcessGroup
) -> Loaders:
    """The same loaders; train and val from memory of the device where `data.device_cache` says so.

    The test split is read once, so that keeping it would not pay. Of a Dataset of the user's, which may give another
    image in each epoch, train is kept by `always` only.
    """
    parts = {"train": loaders.train, "val": loaders.val}
    if isinstance(config, DatasetConfig) and config.device_cache is DeviceCache.auto:
        del parts["train"]
    kept = {split: loader for split, loader in parts.items() if can_be_resident(loader, loader.plan)}
    if not fits_on_device(config.device_cache, sum(map(resident_bytes, kept.values())), device):
        return loaders
    for split, loader in kept.items():
        source = loader.dataset.source
        in_order = EpochSampler(len(source), _FILL_BATCH, seed, False)
        filler = _build_loader(config, source, in_order, None, seed=seed, device=device, world=world)
        kept[split] = DeviceLoader(filler=filler, plan=loader.plan, device=device, split=split)
    if "train" not in kept and config.device_cache is DeviceCache.always:
        log.warning("data.device_cache=always: train cannot be kept on the device: %s", _why_not(loaders.train))
    return replace(loaders, **kept)


def _why_not(loader: BatchLoader) -> str:
    if loader.dataset.train_transform is not None:
        return "augment.transforms change its images one by one (augment=small_batch changes whole batches)"
    return "an epoch does not take all of its images"


def _train_plan(config: Config, splits: Splits, world: ProcessGroup, min_share: int) -> EpochSampler:
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
    """A loader that shows each image of `source` once, in order, resized by `data.resize`.

    `batch_size` defaults to `data.eval_batch_size`, and that to `data.batch_size`.
    """
    size = batch_size or config.eval_batch_size or config.batch_size
    plan = EpochSampler(
        len(source), size, seed, False, limit_batches=limit_batches, rank=world.rank, world_size=world.world_size
    )
    return _build_loader(config, source, plan, None, seed=seed, device=device, world=world)


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
        eval_transform=_build_config_resize(config),
        train_transform=train_transform,
        image_size=config.image_size,
        channels=config.channels,
        seed=seed,
        num_views=num_views,
    )
    return build_loader(
        dataset=dataset,
        plan=plan,
        num_workers=resolve_num_workers(
            config.num_workers, is_ready_made=dataset.is_ready_made, num_processes=world.local_world_size
        ),
        measure_workers=config.num_workers == "auto",
        prefetch_batches=config.prefetch_batches,
        pin_memory=device.type == "cuda",
        skip_bad_images=isinstance(config, _MAY_SKIP) and config.on_bad_image is OnBadImage.skip,
    )


def refuse_too_few(plan: EpochSampler) -> None:
    """Raise ConfigError if no step can be taken; log the images of a last batch that no step is taken on."""
    if plan.batch_size < plan.world_size:
        raise ConfigError(
            "data.batch_size",
            plan.batch_size,
            f"has to be at least the number of processes, {plan.world_size}, which share each batch",
            "use a larger batch, or fewer processes",
        )
    needed = plan.min_share * plan.world_size
    if plan.num_batches == 0:
        raise ConfigError(
            "data",
            rule=f"train has {plan.num_left_out} images, and a step needs {needed}: {_needs(plan)}",
            remedy="add images, or use fewer processes or a model without batch norm",
        )
    if plan.num_left_out:
        log.info(
            "train: %d of %d images are left out of each epoch: they would make a last batch, and a step needs %d: %s",
            plan.num_left_out,
            plan.num_images + plan.num_left_out,
            needed,
            _needs(plan),
        )


def _needs(plan: EpochSampler) -> str:
    each = "two for batch norm" if plan.min_share == 2 else "one"
    return each if plan.world_size == 1 else f"{each} for each of {plan.world_size} processes"


def _build_config_resize(config: DataConfig) -> EvalTransform:
    return build_eval_transform(
        image_size=config.image_size, resize=config.resize.value, crop_fraction=config.crop_fraction
    )


def _build_cached_form(config: DataConfig) -> EvalTransform:
    """What is kept for an augmentation that crops by itself: a short side a little above the crop, with its aspect."""
    fraction = config.crop_fraction if config.resize is Resize.resize_crop else _CACHED_CROP_FRACTION
    return build_eval_transform(image_size=config.image_size, resize="resize_crop", crop_fraction=fraction)


def resolve_num_workers(num_workers: int | str, *, is_ready_made: bool, num_processes: int = 1) -> int:
    """Worker processes for `data.num_workers`; for auto the most that there may be.

    That is none for images that lie ready in memory, else one per core; the cores are shared by the `num_processes` of
    the run on this machine.
    """
    if isinstance(num_workers, str):
        if num_workers != "auto":
            raise ConfigError("data.num_workers", num_workers, "must be auto or a whole number from 0 on")
        return 0 if is_ready_made else min(max(1, available_cores() // num_processes), MAX_AUTO_WORKERS)
    if num_workers < 0:
        raise ConfigError("data.num_workers", num_workers, "must be auto or a whole number from 0 on")
    return num_workers


def available_cores() -> int:
    """Cores that this process may use, which a container or a batch system may have made fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Where Slurm binds no tasks to cores, only this says how many of the node's are the job's.
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdigit() and int(granted) > 0 else cores
