"""From a config to a run: every part, each made from the ones above it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.checkpoint import CheckpointStore, NullStore
from cvtrain.checkpoint.resume import check_classes, describe_schedule_change
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config
from cvtrain.data.augment.build import build_batch_transform
from cvtrain.data.build import BatchLoader, Loaders, build_loaders
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.data.normalize import Identity, Normalizer, resolve_mean_std
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.digest import check_splits_match, check_unchanged, dataset_digest
from cvtrain.data.sources.source import Splits
from cvtrain.data.sources.splits import describe_splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.distributed.sync_batchnorm import convert_sync_batchnorm
from cvtrain.loggers.build import RunLogger
from cvtrain.losses import build_criterion
from cvtrain.models.build import BuiltModel, build_model, without_weights
from cvtrain.models.freeze import set_backbone_trainable
from cvtrain.models.summary import summarize_model
from cvtrain.optim.build import build_optimizer
from cvtrain.optim.ema import build_ema
from cvtrain.optim.param_groups import format_groups
from cvtrain.optim.schedule import build_schedule
from cvtrain.runtime.device import choose_memory_format
from cvtrain.runtime.precision import precision_name, select_precision
from cvtrain.runtime.progress import build_progress
from cvtrain.runtime.rng import derive_rank_seed, seed_everything
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.feature_cache import Backbone, build_features
from cvtrain.training.placement import choose_weights, device_for_rank, spread
from cvtrain.training.run_settings import (
    balance_weights,
    build_monitor,
    build_run_logger,
    checkpoint_metadata,
    planned_steps,
    trainer_settings,
)
from cvtrain.training.state import restore_training_state
from cvtrain.training.trainer import Trainer, whole_network

log = logging.getLogger(__name__)

# What a network sees of the training images that sets weights by them (`BuiltModel.calibrate`).
CALIBRATION_IMAGES = 2048


@dataclass
class Run:
    """A run that is assembled: what training and its report need.

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
        stop_signals: what tells the loop that the user wants to stop; None: one of its own, that nobody triggers.
        state: checkpoint to go on from; None: a new run.
        world: the processes that train it.
    """
    device = device_for_rank(config, world)
    dtype = select_precision(config.trainer.precision.value, device)
    log.info("device %s, precision %s, seed %d", device, precision_name(dtype), config.seed)
    seed_everything(config.seed)

    with world.local_main_first():  # which downloads what the others find there
        splits = build_splits(config.data)
    digest = dataset_digest(splits)
    check_splits_match(digest, world)
    log_splits(splits)
    if state is not None:
        check_classes(splits.classes, state)
        check_unchanged(
            state.get("data_digest"),
            digest,
            is_within_epoch=state["position"]["batch"] > 0,
            allow_changed=config.resume_on_changed_data,
        )
    num_classes = len(splits.classes)
    loaders = build_loaders(config, splits, device=device, world=world)
    batch_transform = build_batch_transform(
        config.augment, num_classes=num_classes, image_size=config.data.image_size, channels=config.data.channels
    )

    weights = choose_weights(config, device, world)
    # What is spread over the processes is whole on the host only.
    place = torch.device("cpu") if weights.is_sharded else device
    with world.local_main_first():
        built, model, normalizer = build_network(config, num_classes, device, state, world, place=place)
    if state is None and built.calibrate is not None and world.is_main_process:
        built.calibrate(normalizer(calibration_images(loaders.train).to(device)).to(place))
    world.broadcast_([*model.parameters(), *model.buffers()])
    signal = stop_signals or StopSignals()
    features = build_features(
        config,
        built,
        Backbone(model, built.head, normalizer, device, dtype),
        loaders,
        batch_transform,
        should_stop=lambda: signal.received is not None,
    )
    average = build_ema(model, config.trainer.ema_decay, weights)
    if weights.is_sharded:
        spread(config, weights, model, average.model)
    criterion = build_criterion(config.loss, num_classes=num_classes, class_weights=balance_weights(config, splits))
    optimizer = build_optimizer(config.optimizer, model, head=built.head, layers=built.layers, device=device)
    log.info("parameter groups\n%s", format_groups(optimizer.param_groups))
    weights.adopt(optimizer)
    monitor = build_monitor(config)
    total_steps = planned_steps(config, loaders.train.num_batches)
    schedule = build_schedule(
        config.scheduler,
        steps_per_epoch=loaders.train.num_batches,
        total_steps=total_steps,
        monitor_mode=monitor.mode,
    )

    logger = build_run_logger(config, run_dir, state) if world.is_main_process else RunLogger()
    trainer = Trainer(
        model=model,
        head=built.head,
        fixed=built.fixed,
        criterion=criterion.to(device),
        optimizer=optimizer,
        schedule=schedule,
        average=average,
        normalizer=Identity() if features else normalizer,
        batch_transform=batch_transform,
        train_loader=features.train if features else loaders.train,
        val_loader=features.val if features else loaders.val,
        num_classes=num_classes,
        monitor=monitor,
        logger=logger,
        progress=build_progress(config.trainer.progress and world.is_main_process),
        device=device,
        dtype=dtype,
        run_dir=run_dir,
        store=build_store(config, run_dir, world),
        stop_signals=signal,
        describe=checkpoint_metadata(config, splits.classes, normalizer, dtype, total_steps) | {"data_digest": digest},
        image_name=splits.train.name,
        settings=trainer_settings(config, built),
        enter=features.enter if features else whole_network,
        world=world,
        weights=weights,
    )
    if state is not None:
        restore_trainer(trainer, state)
        describe_schedule_change(state, total_steps, trainer.learning_rate(trainer.step))
    elif world.rank:
        # The weights are the same everywhere; what users' own code draws from here on is not.
        seed_everything(derive_rank_seed(config.seed, rank=world.rank))
    return Run(config, run_dir, splits, loaders, normalizer, trainer, logger)


def build_store(config: Config, run_dir: Path, world: ProcessGroup) -> CheckpointStore:
    """What writes the checkpoints, or leaves that to rank 0."""
    folder = run_dir / "checkpoints"
    return (
        CheckpointStore(folder, keep_last=config.checkpoint.keep_last) if world.is_main_process else NullStore(folder)
    )


def restore_trainer(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put the trainer where the checkpoint was taken.

    Raises:
        ConfigError: the state is that of another model or optimizer, or of another version of cvtrain.
    """
    try:
        restore_training_state(trainer, state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            key="resume",
            value=trainer.run_dir,
            rule=f"the checkpoint's state does not fit this run: {error}",
            remedy="go on with the settings and the version of cvtrain that made it, or start a new run",
        ) from error


def build_network(
    config: Config,
    num_classes: int,
    device: torch.device,
    state: dict[str, Any] | None,
    world: ProcessGroup = SINGLE_PROCESS,
    *,
    place: torch.device | None = None,
) -> tuple[BuiltModel, nn.Module, Normalizer]:
    """The network on its device, or on `place` for now; what was built around it; and what normalises images for it."""
    data = config.data
    # The weights of a run that goes on come from its checkpoint; published ones need not be there a second time.
    model_config = config.model if state is None else without_weights(config.model)
    built = build_model(model_config, num_classes=num_classes, channels=data.channels, image_size=data.image_size)
    memory_format = choose_memory_format(config.trainer.channels_last, built.convolutional)
    module = built.module
    if config.trainer.sync_batchnorm and world.world_size > 1:
        module = convert_sync_batchnorm(module, device)
    elif config.trainer.sync_batchnorm:
        log.warning("trainer.sync_batchnorm=true has no effect on a run of one process")
    model = module.to(place or device).to(memory_format=memory_format)
    if config.model.freeze is Freeze.backbone:
        set_backbone_trainable(model, built.head, trainable=False, fixed=built.fixed)
        warn_of_random_backbone(config)
    log.info(
        "model %s\n%s", config.model.name, summarize_model(model, (data.channels, data.image_size, data.image_size))
    )
    if state is None:
        mean, std = resolve_mean_std(data, built.mean, built.std)
    else:
        mean, std = tuple(state["preprocessing"]["mean"]), tuple(state["preprocessing"]["std"])
    return built, model, Normalizer(mean, std, memory_format).to(device)


def calibration_images(loader: BatchLoader) -> torch.Tensor:
    """(B, C, S, S) uint8: up to 2,048 training images, those that an epoch begins with, without batch transforms."""
    return loader.dataset[BatchIndices(0, 0, loader.plan.order(0)[:CALIBRATION_IMAGES])].images


def warn_of_random_backbone(config: Config) -> None:
    """Say it when only the head of a network with random weights is going to train."""
    model = config.model
    starts_random = not getattr(model, "pretrained", False) and getattr(model, "weights", None) is None
    if model.freeze is Freeze.backbone and starts_random:
        log.warning(
            "model.freeze=backbone with random weights: the head learns on top of random features. "
            "Set model.pretrained=true or model.weights=PATH"
        )


def log_splits(splits: Splits) -> None:
    """Say what images there are: how they were split, how many per class, and what was left out."""
    log.info("data\n%s", "\n".join((*describe_splits(splits), *splits.left_out)))
    for line in splits.warnings:
        log.warning("data: %s", line)
