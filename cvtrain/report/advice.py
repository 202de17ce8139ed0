"""What a run is, as far as advice on its speed depends on it."""

import torch

from cvtrain.config.schema.data import FileDataConfig
from cvtrain.data.cache.budget import free_memory
from cvtrain.data.cache.source import CachedSource, NullStore
from cvtrain.data.loader.num_workers import available_cores
from cvtrain.data.sources.source import FileSource
from cvtrain.report.bottleneck import Facts
from cvtrain.runtime.precision import has_native_bf16
from cvtrain.training.build import Run
from cvtrain.training.features import FeatureLoader

# Pixels of a stored image for each of a square crop: 256 x 342 for 224, of a photo of 3 by 4.
_STORED_PIXELS = 1.75


def describe_facts(run: Run) -> Facts:
    """What the advice on speed depends on."""
    trainer, train = run.trainer, run.loaders.train
    source = train.dataset.source
    decodes = isinstance(source, FileSource) or (
        isinstance(source, CachedSource) and isinstance(source.store, NullStore)
    )
    on_cpu = trainer.device.type == "cpu"
    return Facts(
        num_workers=train.num_workers,
        num_cores=available_cores(),
        on_cpu=on_cpu,
        can_cache=decodes and isinstance(run.config.data, FileDataConfig),
        cache_remedy=cache_remedy(run),
        save_remedy=save_remedy(run),
        is_ready_made=train.dataset.is_ready_made,
        faster_precision=trainer.dtype == torch.float32 and has_native_bf16(trainer.device),
        keeps_features=isinstance(trainer.train_loader, FeatureLoader),
        can_compile=trainer.device.type == "cuda" and not run.config.trainer.compile,
    )


def cache_remedy(run: Run) -> str:
    """`data.cache=ram` if the training images, shrunk to a short side above the crop, take half the free memory."""
    data = run.config.data
    num_bytes = len(run.splits.train) * data.image_size**2 * data.channels * _STORED_PIXELS
    return "data.cache=ram" if num_bytes <= free_memory() / 2 else "data.cache=disk"


def save_remedy(run: Run) -> str:
    """The setting by which the run saves most often; each evaluation saves too."""
    settings, evaluation = run.config.checkpoint, run.config.trainer
    if settings.every_steps is not None:
        return "checkpoint.every_steps"
    if settings.every_minutes is not None and settings.every_minutes < 1:
        return "checkpoint.every_minutes"
    return "trainer.eval_every_epochs" if evaluation.eval_every_steps is None else "trainer.eval_every_steps"
