"""From a config to a run: every part, each made from the ones above it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.checkpoint import CheckpointStore, NullStore
from cvtrain.checkpoint.resume import check_classes, describe_schedule_change
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.optim import MuonConfig
from cvtrain.config.schema.root import Config
from cvtrain.config.serialize import to_plain
from cvtrain.data.augment.build import build_batch_transform
from cvtrain.data.balance import loss_weights
from cvtrain.data.build import BatchLoader, Loaders, build_loaders, resolve_resize
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.data.normalize import Identity, Normalizer, resolve_mean_std
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.digest import DatasetDigest, check_splits_match, check_unchanged, dataset_digest, stat_splits
from cvtrain.data.sources.leakage import leak_warnings
from cvtrain.data.sources.source import Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup, device_for_rank
from cvtrain.loggers.build import RunLogger, build_loggers
from cvtrain.losses import build_criterion
from cvtrain.models.build import BuiltModel, build_model, without_weights
from cvtrain.models.dry_run import has_unused_parameters
from cvtrain.models.freeze import BackboneFreeze, NoFreeze, has_batch_norm, set_backbone_trainable
from cvtrain.optim.build import build_optimizer
from cvtrain.optim.ema import build_ema
from cvtrain.optim.schedule import build_schedule
from cvtrain.runtime.device import choose_memory_format
from cvtrain.runtime.precision import select_precision
from cvtrain.runtime.progress import build_progress
from cvtrain.runtime.rng import derive_rank_seed, seed_everything
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.batch_size import fit_batch_size
from cvtrain.training.cpu_precision import choose_run_precision
from cvtrain.training.features import Backbone, build_features
from cvtrain.training.head_start import start_head
from cvtrain.training.metadata import checkpoint_metadata
from cvtrain.training.monitor import build_monitor
from cvtrain.training.parts import whole_network
from cvtrain.training.state import planned_steps
from cvtrain.training.trainer import Trainer

log = logging.getLogger(__name__)

# Training images that set the weights of networks which look at data first (`BuiltModel.calibrate`).
CALIBRATION_IMAGES = 2048


@dataclass
class Run:
    """A run that is built: what training and its report need.

    `loaders` and `normalizer` are of images, also where the trainer's are of features.
    """

    config: Config
    run_dir: Path
    splits: Splits
    loaders: Loaders
    normalizer: Normalizer
    trainer: Trainer
    logger: RunLogger


def build_run(
    config: Config,
    run_dir: Path,
    stop_signals: StopSignals | None = None,
    state: dict[str, Any] | None = None,
    world: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """Build every part of the run from its config; nothing is trained yet.

    Args:
        stop_signals: stop the loop; None: none does.
        state: checkpoint to resume from; None: a new run.
        world: the ranks that train it.
    """
    stop_signals = stop_signals or StopSignals()
    # Runtime
    device = init_runtime(config, world)
    # Data
    splits, digest = load_splits(config, state, world)
    num_classes = len(splits.classes)
    # Model, which decides how small a batch may be
    built, model, normalizer = build_network(config, num_classes, device, state, world)
    dtype = choose_run_precision(config, model, normalizer, device, state, world)
    named, config = config, resolve_preprocessing(config, built, state)
    config = fit_batch_size(config, len(splits.train), state, world_size=world.world_size)
    freeze = build_freeze(config, built)
    batch_norm = has_batch_norm(freeze.trained_part(model))
    loaders = build_loaders(config, splits, device=device, world=world, batch_norm=batch_norm)
    batch_transform = build_batch_transform(
        config.augment, num_classes=num_classes, image_size=config.data.image_size, channels=config.data.channels
    )
    if state is None and built.calibrate is not None and world.is_main_process:
        built.calibrate(normalizer(calibration_images(loaders.train).to(device)))
    backbone = Backbone(model, built.head, normalizer, device, dtype)
    weights = loss_weights(config.data.balance, splits.train.labels, num_classes)
    progress = build_progress(config.trainer.progress and world.is_main_process)
    is_candidate = False if state is None else state.get("head_is_candidate", False)
    if state is None and world.is_main_process:
        is_candidate = start_head(config, built, backbone, loaders.train, class_weights=weights, progress=progress)
    is_candidate = world.broadcast(is_candidate)
    world.broadcast_([*model.parameters(), *model.buffers()])
    features = build_features(
        config,
        built,
        backbone,
        loaders,
        batch_transform,
        should_stop=lambda: stop_signals.received is not None,
    )
    ema = build_ema(model, config.trainer.ema_decay)
    # Criterion
    criterion = build_criterion(config.loss, num_classes=num_classes, class_weights=weights).to(device)
    # Optimizer
    if built.is_pretrained and isinstance(config.optimizer, MuonConfig):
        log.warning(
            "optimizer=muon on pretrained weights: fine-tuning with another kind of optimizer than they were trained "
            "with ends worse (arXiv 2605.10468). Set optimizer=adamw or optimizer=sgd"
        )
    optimizer = build_optimizer(config.optimizer, model, head=built.head, layers=built.layers, device=device)
    # Schedule
    monitor = build_monitor(config.trainer)
    steps_per_epoch = loaders.train.num_batches
    total_steps = planned_steps(config.trainer, steps_per_epoch)
    schedule = build_schedule(
        config.scheduler, steps_per_epoch=steps_per_epoch, total_steps=total_steps, monitor_mode=monitor.mode
    )
    # Loggers
    logger = build_run_logger(config, run_dir, state) if world.is_main_process else RunLogger()
    # Trainer
    trainer = Trainer(
        config.trainer,
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        train_loader=features.train if features else loaders.train,
        val_loader=features.val if features else loaders.val,
        schedule=schedule,
        ema=ema,
        normalizer=Identity() if features else normalizer,
        batch_transform=batch_transform,
        aux_loss_weight=built.aux_loss_weight,
        freeze=freeze,
        monitor=monitor,
        logger=logger,
        progress=progress,
        device=device,
        dtype=dtype,
        seed=config.seed,
        run_dir=run_dir,
        checkpoint=config.checkpoint,
        store=build_store(config, run_dir, world),
        metadata=checkpoint_metadata(named, config.data, splits.classes, normalizer, dtype, total_steps)
        | {"data_digest": digest, "head_is_candidate": is_candidate, "batch_size": config.data.batch_size},
        stop_signals=stop_signals,
        image_name=splits.train.name,
        entry=features.head_of if features else whole_network,
        head_to_reset=built.head if is_candidate else (),
        world=world,
        has_unused_parameters=world.world_size > 1 and has_unused_parameters(model, (2, *image_shape(config))),
    )
    if state is not None:
        restore_trainer(trainer, state)
        describe_schedule_change(state, total_steps, trainer.learning_rate(trainer.step))
    elif world.rank:
        # The weights are the same everywhere; what users' own code draws from here on is not.
        seed_everything(derive_rank_seed(config.seed, rank=world.rank))
    return Run(config, run_dir, splits, loaders, normalizer, trainer, logger)


def init_runtime(config: Config, world: ProcessGroup) -> torch.device:
    """Choose the device, and seed all generators.

    Raises:
        ConfigError: they cannot be had, or do not go with another setting.
    """
    devices = config.trainer.devices
    if world.is_main_process and world.world_size > 1 and devices not in (1, "auto", world.local_world_size):
        log.warning(
            "trainer.devices=%s has no effect: %d processes were started on this machine",
            devices,
            world.local_world_size,
        )
    device = device_for_rank(config.trainer.device, world)
    if config.trainer.sync_batchnorm and world.world_size == 1:
        log.warning("trainer.sync_batchnorm=true has no effect on a run of one process")
    elif config.trainer.sync_batchnorm and device.type != "cuda":
        raise ConfigError(
            key="trainer.sync_batchnorm",
            value=True,
            rule=f"torch synchronizes batch norm over GPUs only, and this run is on {device}",
            remedy="leave it out, or use model.norm=layer where the model has it",
        )
    select_precision(config.trainer.precision.value, device)  # refused before anything is loaded
    seed_everything(config.seed)
    return device


def load_splits(config: Config, state: dict[str, Any] | None, world: ProcessGroup) -> tuple[Splits, DatasetDigest]:
    """Find the images of each split. Returns their digest too.

    Raises:
        ConfigError: there are none; or ranks, or the run before, have others.
    """
    with world.local_main_first():  # which downloads what the others find there
        splits = build_splits(config.data)
    states = stat_splits(splits)
    splits = replace(splits, warnings=(*splits.warnings, *leak_warnings(config.data, splits, states)))
    digest = dataset_digest(splits, states)
    check_splits_match(digest, world)
    for line in splits.warnings:
        log.warning("data: %s", line)
    if state is not None:
        check_classes(splits.classes, state)
        check_unchanged(
            state.get("data_digest"),
            digest,
            is_within_epoch=state["position"]["batch"] > 0,
            allow_changed=config.resume_on_changed_data,
        )
    return splits, digest


def build_freeze(config: Config, built: BuiltModel) -> NoFreeze:
    """Return what sets which part of the network trains in which epoch."""
    if config.model.freeze is not Freeze.backbone:
        return NoFreeze(bn_stats=config.model.freeze_bn_stats)
    return BackboneFreeze(
        built.head,
        fixed=built.fixed,
        unfreeze_epoch=config.model.unfreeze_epoch,
        bn_stats=config.model.freeze_bn_stats,
    )


def image_shape(config: Config) -> tuple[int, int, int]:
    """Return (C, S, S)."""
    return config.data.channels, config.data.image_size, config.data.image_size


def build_run_logger(config: Config, run_dir: Path, state: dict[str, Any] | None) -> RunLogger:
    """Build the loggers of the run; those of a resumed run append to what they had."""
    started_over = 0 if config.resume is not None else None  # it was cut before its first checkpoint
    return build_loggers(
        config.logger,
        run_dir=run_dir,
        run_config=to_plain(config),
        name=f"{config.name}/{run_dir.name}",
        state=state["loggers"] if state else None,
        resume_step=state["position"]["step"] if state else started_over,
    )


def resolve_preprocessing(config: Config, built: BuiltModel, state: dict[str, Any] | None) -> Config:
    """Return `config` with the resize that the weights expect; that of the checkpoint for a resumed run."""
    if state is None:
        return replace(config, data=resolve_resize(config.data, built.interpolation, built.crop_fraction))
    saved = state["preprocessing"]
    return replace(config, data=resolve_resize(config.data, saved.get("interpolation"), saved.get("crop_fraction")))


def build_store(config: Config, run_dir: Path, world: ProcessGroup) -> CheckpointStore:
    """Return what writes the checkpoints in rank 0, and stands in for it in the others."""
    folder = run_dir / "checkpoints"
    return (
        CheckpointStore(folder, keep_last=config.checkpoint.keep_last) if world.is_main_process else NullStore(folder)
    )


def restore_trainer(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put the trainer where the checkpoint was taken.

    Raises:
        ConfigError: the state is that of another model or optimizer, or of another version of cvtrain; or its position
            is impossible.
    """
    try:
        trainer.restore(state)
    except ConfigError:
        trainer.logger.finish(1)
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        trainer.logger.finish(1)
        raise ConfigError(
            key="resume",
            value=trainer.run_dir,
            rule=f"the checkpoint's state does not fit this run: {error}",
            remedy="resume with the settings and the version of cvtrain that made it, or start a new run",
        ) from error


def build_network(
    config: Config, num_classes: int, device: torch.device, state: dict[str, Any] | None, world: ProcessGroup
) -> tuple[BuiltModel, nn.Module, Normalizer]:
    """Return what the builder made, its network on `device`, and what normalizes images for it."""
    data = config.data
    # The weights of a resumed run come from its checkpoint; published ones need not be there a second time.
    model_config = config.model if state is None else without_weights(config.model)
    with world.local_main_first():
        built = build_model(model_config, num_classes=num_classes, channels=data.channels, image_size=data.image_size)
    memory_format = choose_memory_format(config.trainer.channels_last, built.convolutional)
    module = built.module
    if config.trainer.sync_batchnorm and world.world_size > 1:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    model = module.to(device).to(memory_format=memory_format)
    if config.model.freeze is Freeze.backbone:
        set_backbone_trainable(model, built.head, trainable=False, fixed=built.fixed)
        warn_of_random_backbone(config)
    if state is None:
        mean, std = resolve_mean_std(data, built.mean, built.std)
    else:
        mean, std = tuple(state["preprocessing"]["mean"]), tuple(state["preprocessing"]["std"])
    return built, model, Normalizer(mean, std, memory_format).to(device)


def calibration_images(loader: BatchLoader) -> torch.Tensor:
    """Return (B, C, S, S) uint8: the first 2,048 training images of an epoch at most, without batch transforms."""
    return loader.dataset[BatchIndices(0, 0, loader.plan.order(0)[:CALIBRATION_IMAGES])].images


def warn_of_random_backbone(config: Config) -> None:
    """Warn if only the head of a network with random weights is going to train."""
    model = config.model
    starts_random = not getattr(model, "pretrained", False) and getattr(model, "weights", None) is None
    if model.freeze is Freeze.backbone and starts_random:
        log.warning(
            "model.freeze=backbone with random weights: the head learns on top of random features. "
            "Set model.pretrained=true or model.weights=PATH"
        )
