"""From a config to a run: every part, each made from the ones above it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain import __version__
from cvtrain.averaging import build_average
from cvtrain.batch_norm import share_batch_norm
from cvtrain.checkpoint import CheckpointStore, RemoteStore
from cvtrain.config.data import Balance
from cvtrain.config.errors import ConfigError
from cvtrain.config.model import Freeze
from cvtrain.config.redact import redact
from cvtrain.config.root import Config
from cvtrain.config.serialize import schema_names, to_plain
from cvtrain.config.trainer import Parallel
from cvtrain.continuation import check_classes, describe_schedule_change
from cvtrain.data.augment.build import build_batch_transform
from cvtrain.data.balance import class_counts, class_weights
from cvtrain.data.build import build_splits
from cvtrain.data.loading import BatchLoader, Loaders, build_loaders
from cvtrain.data.plan import BatchKey
from cvtrain.data.same_splits import require_same_splits
from cvtrain.data.source import Splits
from cvtrain.data.splits import describe_splits
from cvtrain.distributed.sharding import WholeWeights, build_weights, num_own_bytes
from cvtrain.distributed.world import ALONE, World
from cvtrain.features.build import Backbone, build_features
from cvtrain.interruption import StopSignal
from cvtrain.loggers.build import RunLogger, build_loggers
from cvtrain.losses import build_criterion
from cvtrain.models.build import BuiltModel, build_model, without_weights
from cvtrain.models.freeze import set_backbone_trainable
from cvtrain.models.summary import summarize_model
from cvtrain.models.units import choose_units
from cvtrain.normalization import Normalizer, PassOn, choose_statistics
from cvtrain.optim.build import build_optimizer
from cvtrain.optim.groups import format_groups
from cvtrain.optim.schedule import build_schedule
from cvtrain.progress import build_progress
from cvtrain.runtime import (
    choose_memory_format,
    derive_rank_seed,
    precision_name,
    seed_generators,
    select_device,
    select_precision,
    visible_gpus,
)
from cvtrain.tracking import Monitor, monitor_mode
from cvtrain.trainer import Trainer, whole_network
from cvtrain.trainer_settings import TrainerSettings
from cvtrain.training_state import restore_training_state

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


def assemble(
    config: Config,
    run_dir: Path,
    stop_signal: StopSignal | None = None,
    state: dict[str, Any] | None = None,
    world: World = ALONE,
) -> Run:
    """Build every part of the run from its config; nothing is trained yet.

    Args:
        stop_signal: what tells the loop that the user wants to stop; None: one of its own, that nobody triggers.
        state: checkpoint to go on from; None: a new run.
        world: the processes that train it.
    """
    device = take_device(config, world)
    dtype = select_precision(config.trainer.precision.value, device)
    log.info("device %s, precision %s, seed %d", device, precision_name(dtype), config.seed)
    seed_generators(config.seed)

    with world.local_main_first():  # which downloads what the others find there
        splits = build_splits(config.data)
    require_same_splits(splits, world)
    log_splits(splits)
    if state is not None:
        check_classes(splits.classes, state)
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
    if state is None and built.calibrate is not None and world.is_main:
        built.calibrate(normalizer(first_images(loaders.train).to(device)).to(place))
    world.copy_from_main_([*model.parameters(), *model.buffers()])
    signal = stop_signal or StopSignal()
    features = build_features(
        config,
        built,
        Backbone(model, built.head, normalizer, device, dtype),
        loaders,
        batch_transform,
        should_stop=lambda: signal.received is not None,
    )
    average = build_average(model, config.trainer.ema_decay, weights)
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

    logger = build_run_logger(config, run_dir, state) if world.is_main else RunLogger()
    trainer = Trainer(
        model=model,
        head=built.head,
        fixed=built.fixed,
        criterion=criterion.to(device),
        optimizer=optimizer,
        schedule=schedule,
        average=average,
        normalizer=PassOn() if features else normalizer,
        batch_transform=batch_transform,
        train_loader=features.train if features else loaders.train,
        val_loader=features.val if features else loaders.val,
        num_classes=num_classes,
        monitor=monitor,
        logger=logger,
        progress=build_progress(config.trainer.progress and world.is_main),
        device=device,
        dtype=dtype,
        run_dir=run_dir,
        store=build_store(config, run_dir, world),
        stop_signal=signal,
        describe=describe_run(config, splits.classes, normalizer, dtype, total_steps),
        image_name=splits.train.name,
        settings=trainer_settings(config, built),
        enter=features.enter if features else whole_network,
        world=world,
        weights=weights,
    )
    if state is not None:
        go_on_from(trainer, state)
        describe_schedule_change(trainer, state, total_steps)
    elif world.rank:
        # The weights are the same everywhere; what users' own code draws from here on is not.
        seed_generators(derive_rank_seed(config.seed, rank=world.rank))
    return Run(config, run_dir, splits, loaders, normalizer, trainer, logger)


def take_device(config: Config, world: World) -> torch.device:
    """The device of this process."""
    if world.is_main and world.world_size > 1 and config.trainer.devices not in (1, "auto", world.local_world_size):
        log.warning(
            "trainer.devices=%s has no effect: %d processes were started on this machine",
            config.trainer.devices,
            world.local_world_size,
        )
    name = config.trainer.device
    if world.world_size > 1 and has_gpu_of_its_own(visible_gpus(), world):
        device = select_device(name)
    else:
        device = select_device(name, local_rank=world.local_rank, num_processes=world.local_world_size)
    if device.type == "cuda" and world.world_size > 1:
        torch.cuda.set_device(device)
    return device


def has_gpu_of_its_own(gpus: list[str], world: World) -> bool:
    """True if each process of each machine sees one GPU, and each another, as with Slurm's --gpus-per-task.

    Args:
        gpus: ids of those that this process sees.
    """
    seen = world.all_gather((world.node, tuple(gpus)))
    return all(len(ids) == 1 for _, ids in seen) and len(set(seen)) == world.world_size


def choose_weights(config: Config, device: torch.device, world: World) -> WholeWeights:
    """Whole weights in each process, or spread over all of them, by `trainer.parallel`."""
    wanted = config.trainer.parallel is Parallel.fsdp
    if wanted and world.world_size == 1:
        log.warning("trainer.parallel=fsdp has no effect on a run of one process; start more with trainer.devices=N")
    return build_weights(world, device, sharded=wanted and world.world_size > 1)


def spread(config: Config, weights: WholeWeights, model: nn.Module, average: nn.Module) -> None:
    """Leave this process's part of the weights in `model`, and in its average if that is another network."""
    data = config.data
    units = choose_units(model, (data.channels, data.image_size, data.image_size))
    total = num_own_bytes(model.parameters())
    for module in (model,) if average is model else (model, average):
        weights.spread(module, units)
    log.info(
        "weights: %.1f of %.1f MiB in this process; whole for the time of their use: %s",
        num_own_bytes(model.parameters()) / 2**20,
        total / 2**20,
        ", ".join((*units, "all else" if units else "the network")),
    )


def build_store(config: Config, run_dir: Path, world: World) -> CheckpointStore:
    """What writes the checkpoints, or leaves that to rank 0."""
    folder = run_dir / "checkpoints"
    return CheckpointStore(folder, keep_last=config.checkpoint.keep_last) if world.is_main else RemoteStore(folder)


def go_on_from(trainer: Trainer, state: dict[str, Any]) -> None:
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
    world: World = ALONE,
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
        module = share_batch_norm(module, device)
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
        mean, std = choose_statistics(data, built.mean, built.std)
    else:
        mean, std = tuple(state["preprocessing"]["mean"]), tuple(state["preprocessing"]["std"])
    return built, model, Normalizer(mean, std, memory_format).to(device)


def first_images(loader: BatchLoader) -> torch.Tensor:
    """(B, C, S, S) uint8: up to 2,048 training images, those that an epoch begins with, without batch transforms."""
    return loader.dataset[BatchKey(0, 0, loader.plan.order(0)[:CALIBRATION_IMAGES])].images


def build_monitor(config: Config) -> Monitor:
    """What follows `trainer.monitor`."""
    name = config.trainer.monitor
    mode = monitor_mode(name, config.trainer.monitor_mode.value)
    return Monitor(name=name, mode=mode, min_delta=config.trainer.early_stop_min_delta)


def planned_steps(config: Config, steps_per_epoch: int) -> int:
    """Optimizer updates of the whole run, which schedules are stretched over."""
    steps = config.trainer.epochs * steps_per_epoch
    return steps if config.trainer.max_steps is None else min(steps, config.trainer.max_steps)


def build_run_logger(config: Config, run_dir: Path, state: dict[str, Any] | None) -> RunLogger:
    """The loggers of the run; those of a run that goes on continue what they had."""
    return build_loggers(
        config.logger,
        run_dir=run_dir,
        run_config=redact(to_plain(config)),
        name=f"{config.name}/{run_dir.name}",
        state=state["loggers"] if state else None,
        resume_step=resume_step(config, state),
    )


def describe_run(
    config: Config, classes: tuple[str, ...], normalizer: Normalizer, dtype: torch.dtype, total_steps: int
) -> dict[str, Any]:
    """What a checkpoint says of itself: a stranger can prepare an image, and read the answer, with this alone."""
    data = config.data
    return {
        "config": redact(to_plain(config)),
        "schemas": schema_names(config),
        "classes": list(classes),
        "preprocessing": {
            "image_size": data.image_size,
            "channels": data.channels,
            "resize": data.resize.value,
            "crop_fraction": data.crop_fraction,
            "mean": normalizer.mean.flatten().tolist(),
            "std": normalizer.std.flatten().tolist(),
        },
        "precision": precision_name(dtype),
        "planned_steps": total_steps,
        "versions": {"cvtrain": __version__, "torch": str(torch.__version__)},
    }


def resume_step(config: Config, state: dict[str, Any] | None) -> int | None:
    """The step that a run goes on from, 0 if it was cut before its first checkpoint; None: a new run."""
    if state is None:
        return None if config.resume is None else 0
    return state["position"]["step"]


def trainer_settings(config: Config, built: BuiltModel) -> TrainerSettings:
    """The loop's numbers out of the config."""
    settings = config.trainer
    return TrainerSettings(
        epochs=settings.epochs,
        seed=config.seed,
        max_steps=settings.max_steps,
        max_minutes=settings.max_minutes,
        grad_accum_steps=settings.grad_accum_steps,
        clip_grad_norm=settings.clip_grad_norm,
        on_nonfinite=settings.on_nonfinite.value,
        rollback_lr_factor=settings.rollback_lr_factor,
        early_stop_patience=settings.early_stop_patience,
        eval_every_epochs=settings.eval_every_epochs,
        eval_every_steps=settings.eval_every_steps,
        eval_flip=settings.eval_flip,
        log_every_steps=settings.log_every_steps,
        save_every_steps=config.checkpoint.every_steps,
        save_every_minutes=config.checkpoint.every_minutes,
        save_best=config.checkpoint.save_best,
        aux_loss_weight=built.aux_loss_weight,
        unfreeze_epoch=config.model.unfreeze_epoch,
        freeze_backbone=config.model.freeze is Freeze.backbone,
        compile_mode=settings.compile_mode.value if settings.compile else None,
    )


def balance_weights(config: Config, splits: Splits) -> torch.Tensor | None:
    """(num_classes,) float32 weights of the loss for `data.balance=class_weights`, else None."""
    if config.data.balance is not Balance.class_weights:
        return None
    return torch.from_numpy(class_weights(class_counts(splits.train.labels, len(splits.classes)))).float()


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
