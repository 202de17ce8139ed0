"""Loaders: the batches of an epoch, made by worker processes or in this one, in an order that they do not change."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from cvtrain.config.data import (
    Balance,
    DataConfig,
    DatasetConfig,
    FileDataConfig,
    HuggingFaceConfig,
    OnBadImage,
)
from cvtrain.config.errors import ConfigError
from cvtrain.config.root import Config
from cvtrain.data.augment.build import build_train_transform
from cvtrain.data.bad_images import BadImage, BadImageError
from cvtrain.data.balance import oversampling_weights
from cvtrain.data.batches import Batch, BatchDataset, TrainTransform
from cvtrain.data.plan import BatchKey, EpochPlan
from cvtrain.data.resize import EvalTransform, build_eval_transform
from cvtrain.data.source import ImageSource, Splits

__all__ = ["Batch", "BatchDataset", "BatchLoader", "EpochPlan", "Loaders", "build_eval_loader", "build_loaders"]

# More workers than this seldom help one device, and each holds batches in shared memory.
MAX_AUTO_WORKERS = 8

# Sources whose images are decoded as they are needed.
_MAY_SKIP = (FileDataConfig, HuggingFaceConfig, DatasetConfig)


class _EpochKeys(Sampler[BatchKey]):
    """The keys that a DataLoader iterates over: those of the epoch that was chosen last."""

    def __init__(self, plan: EpochPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start_batch = 0

    def __iter__(self) -> Iterator[BatchKey]:
        return self.plan.batches(self.epoch, self.start_batch)

    def __len__(self) -> int:
        return self.plan.num_batches - self.start_batch


class BatchLoader:
    """The batches of a split, epoch by epoch. Workers start with the first epoch and stay until `close`.

    Args:
        dataset: makes a batch from its key.
        plan: which images make which batch.
        num_workers: processes that make batches; 0: this one.
        prefetch_batches: batches that each worker makes ahead.
        pin_memory: batches come in page-locked memory; needs a CUDA device.
        skip_bad_images: leave out images that cannot be read; otherwise the first one raises.

    Attributes:
        bad_images: what was left out so far, by index.
    """

    def __init__(
        self,
        *,
        dataset: BatchDataset,
        plan: EpochPlan,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
        skip_bad_images: bool = False,
    ) -> None:
        self.dataset = dataset
        self.plan = plan
        self.num_workers = min(num_workers, plan.num_batches)
        self.prefetch_batches = prefetch_batches
        self.pin_memory = pin_memory
        self.skip_bad_images = skip_bad_images
        self.bad_images: dict[int, BadImage] = {}
        self._keys = _EpochKeys(plan)
        self._workers: DataLoader[Batch] | None = None

    @property
    def batch_size(self) -> int:
        """Images per batch; the last batch of an epoch may have fewer."""
        return self.plan.batch_size

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return self.plan.num_batches

    @property
    def num_images(self) -> int:
        """Images per epoch, those that cannot be read included."""
        return self.plan.num_images

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (0-based) from number `start_batch` on, equal for any number of workers.

        It may be left early; the next epoch starts clean. Only one epoch can be under way.

        Raises:
            BadImageError: an image cannot be read, unless such images are skipped; or all of them were.
        """
        num_read = 0
        number = start_batch
        for batch in self._batches(epoch, start_batch):
            assert (batch.epoch, batch.number) == (epoch, number), "another epoch of this loader was started"
            number += 1
            num_read += len(batch)
            for bad in batch.bad:
                if not self.skip_bad_images:
                    raise BadImageError(bad.name, bad.cause, bad.index)
                self.bad_images[bad.index] = bad
            yield batch
        if num_read == 0 and start_batch == 0 and self.bad_images:
            first = next(iter(self.bad_images.values()))
            raise BadImageError(first.name, f"{first.cause}; nor could any other image be read", first.index)

    def close(self) -> None:
        """End the workers. A later epoch starts new ones."""
        if self._workers is not None and self._workers._iterator is not None:
            # Left to the garbage collector, the queues may go first: each worker is then waited for 5 s and killed.
            self._workers._iterator._shutdown_workers()  # type: ignore[attr-defined]
        self._workers = None

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        if self.num_workers == 0:
            for key in self.plan.batches(epoch, start_batch):
                batch = self.dataset[key]
                yield batch.pin_memory() if self.pin_memory else batch
            return
        self._keys.epoch, self._keys.start_batch = epoch, start_batch
        if self._workers is None:
            self._workers = self._build_workers()
        with warnings.catch_warnings():
            # More workers than cores were asked for by name: data.num_workers.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            # Workers start here. Later iterations first drain what an unfinished one left in the queues.
            iterator = iter(self._workers)
        yield from iterator

    def _build_workers(self) -> DataLoader[Batch]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return DataLoader(
                self.dataset,
                sampler=self._keys,
                batch_size=None,  # the dataset makes whole batches
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_batches,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                worker_init_fn=_init_worker,
                # Of its own, since DataLoader draws a seed per epoch and would draw it from the global one.
                generator=torch.Generator(),
            )


def _init_worker(worker: int) -> None:
    """One thread per worker, and Ctrl-C is the main process's business: workers end with it, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # read when cv2 is imported later, by the reader or the augmentation
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


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


def build_loaders(config: Config, splits: Splits, *, device: torch.device) -> Loaders:
    """The loaders of a run.

    Training: shuffled, `data.batch_size` images per batch, augmented as `config.augment` says, drawn by class weight
    with `data.balance=oversample`. Evaluation: in order, each image once; `trainer.limit_val_batches` takes images
    spread evenly over the split. With `trainer.overfit_one_batch` both show the first training batch, resized as for
    evaluation, and there is no test.
    """
    data, seed, limit = config.data, config.seed, config.trainer.limit_val_batches
    plan = _train_plan(config, splits)
    if config.trainer.overfit_one_batch:
        # Of the shuffled order, since the first files of a folder are all of one class.
        first = np.unique(plan.order(0)[: data.batch_size])
        plan = EpochPlan(len(splits.train), data.batch_size, seed, False, subset=first)
        train, val = (_build_loader(data, splits.train, plan, None, seed=seed, device=device) for _ in range(2))
        return Loaders(train, val, None)
    transform = build_train_transform(
        config.augment,
        image_size=data.image_size,
        channels=data.channels,
        eval_transform=_build_config_resize(data),
    )
    return Loaders(
        train=_build_loader(data, splits.train, plan, transform, seed=seed, device=device),
        val=build_eval_loader(data, splits.val, seed=seed, device=device, limit_batches=limit),
        test=None
        if splits.test is None
        else build_eval_loader(data, splits.test, seed=seed, device=device, limit_batches=limit),
    )


def _train_plan(config: Config, splits: Splits) -> EpochPlan:
    weights = None
    if config.data.balance is Balance.oversample:
        weights = oversampling_weights(splits.train.labels, len(splits.classes))
    return EpochPlan(
        len(splits.train),
        config.data.batch_size,
        config.seed,
        True,
        weights,
        limit_batches=config.trainer.limit_train_batches,
    )


def build_eval_loader(
    config: DataConfig,
    source: ImageSource,
    *,
    device: torch.device,
    seed: int = 0,
    batch_size: int | None = None,
    limit_batches: int | None = None,
) -> BatchLoader:
    """A loader that shows each image of `source` once, in order, resized by `data.resize`.

    `batch_size` defaults to `data.eval_batch_size`, and that to `data.batch_size`.
    """
    size = batch_size or config.eval_batch_size or config.batch_size
    plan = EpochPlan(len(source), size, seed, False, limit_batches=limit_batches)
    return _build_loader(config, source, plan, None, seed=seed, device=device)


def _build_loader(
    config: DataConfig,
    source: ImageSource,
    plan: EpochPlan,
    train_transform: TrainTransform | None,
    *,
    seed: int,
    device: torch.device,
) -> BatchLoader:
    dataset = BatchDataset(
        source=source,
        eval_transform=_build_config_resize(config),
        train_transform=train_transform,
        image_size=config.image_size,
        channels=config.channels,
        seed=seed,
    )
    return BatchLoader(
        dataset=dataset,
        plan=plan,
        num_workers=resolve_num_workers(config.num_workers, is_ready_made=dataset.is_ready_made),
        prefetch_batches=config.prefetch_batches,
        pin_memory=device.type == "cuda",
        skip_bad_images=isinstance(config, _MAY_SKIP) and config.on_bad_image is OnBadImage.skip,
    )


def _build_config_resize(config: DataConfig) -> EvalTransform:
    return build_eval_transform(
        image_size=config.image_size, resize=config.resize.value, crop_fraction=config.crop_fraction
    )


def resolve_num_workers(num_workers: int | str, *, is_ready_made: bool) -> int:
    """Worker processes for `data.num_workers`: auto is none for images that lie ready in memory, else one per core."""
    if isinstance(num_workers, str):
        if num_workers != "auto":
            raise ConfigError("data.num_workers", num_workers, "must be auto or a whole number from 0 on")
        return 0 if is_ready_made else min(available_cores(), MAX_AUTO_WORKERS)
    if num_workers < 0:
        raise ConfigError("data.num_workers", num_workers, "must be auto or a whole number from 0 on")
    return num_workers


def available_cores() -> int:
    """Cores that this process may use, which a container or a batch system may have made fewer."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
