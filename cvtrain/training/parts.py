"""`TrainerParts`: what a trainer is made of, and the defaults of a run that is made by hand."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.checkpoint import CheckpointStore, NullStore
from cvtrain.config.schema.trainer import CheckpointConfig, TrainerConfig
from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.build import BatchLoader
from cvtrain.data.normalize import Identity, Normalizer
from cvtrain.distributed.coordinator import build_coordinator
from cvtrain.distributed.ddp import build_replica
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.loggers.base import RunLogger
from cvtrain.losses import Criterion
from cvtrain.models.compile import CompiledModel
from cvtrain.models.freeze import NoFreeze, has_batch_norm
from cvtrain.optim.ema import ModelEma, NoEma
from cvtrain.optim.schedule import Schedule
from cvtrain.optim.schedule_factors import constant
from cvtrain.runtime.progress import Progress
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.evaluator import Evaluator
from cvtrain.training.features import FeatureLoader
from cvtrain.training.meters import ThroughputMeter, TrainMetrics
from cvtrain.training.monitor import Monitor
from cvtrain.training.nonfinite import build_clipping, build_guard
from cvtrain.training.reporter import Reporter
from cvtrain.training.state import TrainState, planned_steps
from cvtrain.training.timer import StageTimer


def whole_network(network: nn.Module) -> nn.Module:
    """Return the part of a network that takes batches of images."""
    return network


@dataclass(eq=False)
class TrainerParts:
    """The parts of a trainer.

    Args:
        config: numbers of the loop.
        criterion: the loss; knows the number of classes.
        optimizer: its groups' `initial_lr` (default: `lr`) are the peak learning rates, which `schedule` multiplies.
        ema: has the weights that are evaluated; None: those of `model`.
        aux_loss_weight: weight of the loss of auxiliary heads.
        freeze: sets what trains in which epoch.
        run_dir: gets the list of batches whose loss was not finite.
        checkpoint: when `store` gets a snapshot, besides evaluations and the end; the default store keeps none.
        metadata: entries of a checkpoint that are the same throughout the run.
        image_name: from a place in the train split to the image's name.
        entry: from the network to the part of it that takes the loaders' batches.
        head_to_reset: names of submodules that go to zero logits before the first step; what they were was evaluated
            as a candidate for best.pt.
        has_unused_parameters: some parameters get no gradient in a step, which matters to several ranks.
    """

    config: TrainerConfig
    _: KW_ONLY
    model: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    train_loader: BatchLoader | FeatureLoader
    val_loader: BatchLoader | FeatureLoader
    schedule: Schedule = field(default_factory=lambda: Schedule(constant))
    ema: ModelEma | NoEma = None  # type: ignore[assignment]  # set by __post_init__
    normalizer: Normalizer | Identity = field(default_factory=Identity)
    batch_transform: BatchTransform = field(default_factory=BatchTransform)
    aux_loss_weight: float = 0.0
    freeze: NoFreeze = field(default_factory=NoFreeze)
    monitor: Monitor = field(default_factory=lambda: Monitor(name="val/accuracy", mode="max"))
    logger: RunLogger = field(default_factory=RunLogger)
    progress: Progress = field(default_factory=Progress)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    run_dir: Path = Path()
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    store: CheckpointStore = field(default_factory=lambda: NullStore(Path()))
    metadata: dict[str, Any] = field(default_factory=dict)
    stop_signals: StopSignals = field(default_factory=StopSignals)
    image_name: Callable[[int], str] = str
    entry: Callable[[nn.Module], nn.Module] = whole_network
    head_to_reset: tuple[str, ...] = ()
    world: ProcessGroup = SINGLE_PROCESS
    has_unused_parameters: bool = False
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        config, device, world = self.config, self.device, self.world
        self.state = TrainState(grad_accum_steps=config.grad_accum_steps)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.ema = self.ema or NoEma(self.model)
        fp16 = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        self.clip = build_clipping(config, fp16=fp16)
        self.guard = build_guard(config, run_dir=self.run_dir, image_name=self.image_name)
        self.coordinator = build_coordinator(self.stop_signals, world)
        self.replica = build_replica(self.entry(self.model), world, device, has_unused=self.has_unused_parameters)
        # Evaluation and checkpoints use the plain module, so that figures do not depend on compilation.
        self.forward = self.replica.forward
        if config.compile:
            mode = config.compile_mode.value
            self.forward = CompiledModel(self.forward, mode=mode, micro_batches=self.usual_micro_batches)
        enough = 2 * world.world_size <= self.train_loader.batch_size
        self.min_images = 2 if enough and has_batch_norm(self.freeze.trained_part(self.model)) else 1
        self.evaluator = Evaluator(
            criterion=self.criterion,
            normalizer=self.normalizer,
            device=device,
            dtype=self.dtype,
            flip=config.eval_flip,
            on_batch=self.progress.advance,
            coordinator=self.coordinator,
            world=world,
        )
        self.window = TrainMetrics(device, world.all_reduce_)
        self.stopwatch = ThroughputMeter()
        self.timer = StageTimer(device)
        self.reporter = Reporter(
            self.logger,
            self.progress,
            self.stopwatch,
            epochs=config.epochs,
            total_steps=planned_steps(config, self.train_loader.num_batches),
            # While features are computed, an epoch takes far longer than the ones after it.
            slow_epochs=self.train_loader.num_views if isinstance(self.train_loader, FeatureLoader) else 0,
        )

    def usual_micro_batches(self) -> tuple[int, int]:
        """Return the images of this rank's micro-batches of a full batch, and how many they are."""
        smallest, more = divmod(self.train_loader.batch_size, self.world.world_size)
        parts = min(self.state.grad_accum_steps, smallest)
        return -(-(smallest + (self.world.rank < more)) // parts), parts
