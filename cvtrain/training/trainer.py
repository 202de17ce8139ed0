"""The loop: for each epoch train, evaluate, log, checkpoint. The step is one method, `train_step`.

There are no callbacks. Who needs a hook edits these lines or overrides one method.
"""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.checkpoint import CheckpointStore
from cvtrain.config.errors import RunError
from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.build import Batch, BatchLoader
from cvtrain.data.loader.prefetch import prefetch_to_device, to_device
from cvtrain.data.normalize import Identity, Normalizer
from cvtrain.distributed.coordinator import build_coordinator
from cvtrain.distributed.ddp import build_gradient_sum
from cvtrain.distributed.fsdp import WholeWeights
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.loggers.build import RunLogger
from cvtrain.losses import Criterion, empty_loss, loss_with_aux_heads
from cvtrain.models.compile import CompiledModel
from cvtrain.models.freeze import set_backbone_trainable, train_mode
from cvtrain.optim.ema import ModelEma, NoEma
from cvtrain.optim.schedule import Schedule, apply_schedule
from cvtrain.runtime.clock import now
from cvtrain.runtime.precision import autocast
from cvtrain.runtime.progress import ProgressBar
from cvtrain.runtime.rng import derive_rank_seed, seed_step
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.batch_share import BatchShare
from cvtrain.training.evaluator import Evaluation, evaluate_split
from cvtrain.training.feature_loader import FeatureLoader
from cvtrain.training.loop_times import LoopTimes
from cvtrain.training.meters import ThroughputMeter, TrainMetrics
from cvtrain.training.monitor import Monitor
from cvtrain.training.nonfinite import NonFiniteGuard, NonFiniteLossError, double_grad_accum, whole_run_out_of_memory
from cvtrain.training.settings import StopReason, TrainerSettings
from cvtrain.training.state import roll_back, scale_learning_rates, training_state

log = logging.getLogger(__name__)

# Parts of derive_seed that keep the streams of random numbers apart.
BATCH_TRANSFORM_STREAM = 0xBA7C
# Rollbacks without a later checkpoint in between, after which the run gives up.
MAX_ROLLBACKS = 5


def whole_network(network: nn.Module) -> nn.Module:
    """Where batches of images enter a network: at its input."""
    return network


class Trainer:
    """Trains `model` and leaves checkpoints and metrics behind.

    One clock: `step` counts optimizer updates. `epoch` and `batch` say where in the data the next step is.
    `enter` gives the part of a network that takes the loaders' batches: all of it, or its head where they are features.

    Of several processes (`world`), all go through the same steps with their shares of each batch, and what they do
    between steps they agree on. Rank 0 alone has loggers, a bar and a store that writes.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: tuple[str, ...],
        fixed: frozenset[str],
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        average: ModelEma | NoEma,
        normalizer: Normalizer | Identity,
        batch_transform: BatchTransform,
        train_loader: BatchLoader | FeatureLoader,
        val_loader: BatchLoader | FeatureLoader,
        num_classes: int,
        monitor: Monitor,
        logger: RunLogger,
        progress: ProgressBar,
        device: torch.device,
        dtype: torch.dtype,
        run_dir: Path,
        describe: dict[str, Any],
        store: CheckpointStore,
        stop_signals: StopSignals,
        image_name: Callable[[int], str],
        settings: TrainerSettings,
        enter: Callable[[nn.Module], nn.Module] = whole_network,
        world: ProcessGroup = SINGLE_PROCESS,
        weights: WholeWeights | None = None,
    ) -> None:
        self.model = model
        self.weights = weights or WholeWeights(world)
        self.head = head
        self.fixed = fixed
        # Evaluation and checkpoints use the plain module, so that figures do not depend on compilation.
        self.forward: Callable[[torch.Tensor], Any] = enter(model)
        if settings.compile_mode is not None:
            self.forward = CompiledModel(
                enter(model),
                mode=settings.compile_mode,
                micro_batches=lambda: self.share.usual_split(self.num_micro_batches),
            )
        self.enter = enter
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.scaler = self.weights.build_scaler(device, enabled=dtype == torch.float16)
        # It makes its scale when it is first used, which a process without images in the first step would not do.
        self.scaler.scale(torch.zeros((), device=device))
        self.average = average
        self.normalizer = normalizer
        self.batch_transform = batch_transform
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.num_classes = num_classes
        self.monitor = monitor
        self.logger = logger
        self.progress = progress
        self.device = device
        self.dtype = dtype
        self.run_dir = run_dir
        self.describe = describe
        self.store = store
        self.stop_signals = stop_signals
        self.world = world
        self.coordinator = build_coordinator(stop_signals, world)
        self.gradient_sum = build_gradient_sum(world, self.weights, optimizer)
        self.share = BatchShare(
            world, self.coordinator, model, batch_size=train_loader.batch_size, in_parts=self.weights.is_sharded
        )
        self.guard = NonFiniteGuard(run_dir=run_dir, image_name=image_name)
        self.settings = settings

        # Where the run is: the next step trains batch `batch` of epoch `epoch`, unless the epoch's end is due first.
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.epoch_end_due = False
        self.evaluated_step = -1
        self.num_micro_batches = settings.grad_accum_steps
        self.num_skipped_steps = 0
        self.num_rollbacks = 0
        self.lr_scale = 1.0
        self.elapsed_seconds = 0.0
        self.last_metrics: dict[str, float] = {}

        self.window = TrainMetrics(device, world.all_reduce_)
        self.stopwatch = ThroughputMeter()
        self.times = LoopTimes(device)
        self.clock = self.times.clock
        self.best_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self._updating = False
        self._clock = self._last_save = self.coordinator.now()

    # ------------------------------------------------------------------ the run

    def fit(self) -> StopReason:
        """Train until something ends the run; evaluates and saves on the way and at the end.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite, and `on_nonfinite` is stop or rolling back did not help.
        """
        try:
            return self.run_loop()
        finally:
            self.store.wait()

    def run_loop(self) -> StopReason:
        """`fit` without the wait for its last checkpoint, which may still be on its way to the disk."""
        with ExitStack() as stack:
            stack.enter_context(self.stop_signals.deferred())
            stack.callback(self.progress.close)
            self.coordinator.exchange()
            self._clock = self._last_save = self.coordinator.now()
            self.times.start()
            if self._end_reason() is None:
                self.val_loader.start()
                self.train_loader.start()
            if self.settings.on_nonfinite == "rollback" and self.step == 0:
                self.save()
            while self.epoch_end_due or self._end_reason() is None:
                try:
                    self._advance()
                except NonFiniteLossError as error:
                    self._roll_back(error)
                except RunError as error:
                    # The data failed, not the weights: what was learnt is kept.
                    if self.coordinator.all_ranks_failed(error):
                        self.save()
                    raise
                if self.coordinator.received is not None:
                    log.warning("%s: saving, then ending", self.coordinator.received.name)
                    self.save()
                    return StopReason.interrupted
            self.coordinator.exchange()  # of a signal after the last step
        reason = self._end_reason()
        assert reason is not None
        return reason

    def _advance(self) -> None:
        """Train to the end of the epoch, or do what is due there; returns early if the user wants to stop."""
        if not self.epoch_end_due:
            self.train_epoch()
        if self.epoch_end_due and self.coordinator.received is None:
            self.finish_epoch()
            if not self.epoch_end_due:
                self.times.end_epoch()

    def train_epoch(self) -> None:
        """Train on what is left of the epoch; ends early at a limit or at the user's wish to stop."""
        self._set_train_mode()
        self._evaluate_between_steps()  # due if a signal stopped it before a restart
        seen = self.batch * self.train_loader.batch_size
        self.progress.start(f"epoch {self.epoch + 1}/{self.settings.epochs}", self.train_loader.num_images, seen)
        waiting_since = now()
        began_at, trained = self.batch, 0
        counted = self.times.counted(self.train_loader.epoch(self.epoch, start_batch=self.batch))
        arriving = prefetch_to_device(counted, self.device, arrived=lambda: self.clock.lap("wait"))
        for batch in self.coordinator.follow(arriving):
            self.clock.lap("transfer")
            working_since = now()
            num_images = self.share.count(batch)
            if num_images:
                self._step_within_memory(batch)
            self.batch += 1
            self.progress.advance(num_images)
            trained += num_images
            finished = now()
            self.stopwatch.add(
                wait_seconds=working_since - waiting_since,
                step_seconds=finished - working_since,
                num_images=num_images,
            )
            if self.batch < self.train_loader.num_batches:
                self._after_step()
            if self.coordinator.received is not None or self._end_reason() is not None:
                break
            self.clock.lap("other")
            waiting_since = now()
        self.guard.check()
        if self.batch >= self.train_loader.num_batches:
            # A process that is alone hears of it from its loader; of several, one may well have had only bad images.
            if self.world.world_size > 1 and began_at == trained == 0:
                raise RunError(
                    f"epoch {self.epoch + 1} had nothing to train on: no image could be read, or too few to go on\n"
                    "  mend or replace the files; warnings above name the first of them"
                )
            self.epoch, self.batch, self.epoch_end_due = self.epoch + 1, 0, True
        elif self.coordinator.received is None:
            self.epoch_end_due = True

    def train_step(self, batch: Batch) -> None:
        """One optimizer update on one batch of uint8 images, which may be on the device already."""
        seed_step(self.settings.seed, self.step, self.world.rank)
        apply_schedule(self.optimizer, self.schedule, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with self.gradient_sum.step():
            counted = self._accumulate(batch) if self.share.takes_part(batch) else []
        if self.world.world_size > 1 and self.criterion.class_weights is not None:
            gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
            self.share.divide_by_weight(gradients, self.device)
        self.clock.lap("forward_backward")

        self._updating = True
        finite = self._all_finite([loss for loss, _, _ in counted])
        if self._may_update(self.world.all_true(finite), batch):
            self.scaler.step(self.optimizer)
            self.average.update(self.model)
            for loss, logits, micro_targets in counted:
                self.window.add(loss, logits, micro_targets)
        self.scaler.update()
        self._updating = False
        self.clock.lap("optimizer")
        self.step += 1

    def _accumulate(self, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Leave the gradient of this process's images in the parameters, as their part of the batch's mean.

        Returns:
            Loss, logits and targets of each micro-batch; none where there is nothing to learn from.
        """
        images = self.normalizer.to_float(to_device(batch.images, self.device))
        labels = to_device(batch.labels, self.device)
        seed = derive_rank_seed(self.settings.seed, BATCH_TRANSFORM_STREAM, self.step, rank=self.world.rank)
        images, targets = self.batch_transform(images, labels, seed)
        images = self.normalizer.normalize_(images)
        self.clock.lap("prepare")

        parts = self.share.split(images, targets, self.num_micro_batches)
        weights = [self.criterion.total_weight(micro_targets) for _, micro_targets in parts]
        total = self.share.total_weight(weights, len(images))
        counted = []
        for number, ((micro_images, micro_targets), weight) in enumerate(zip(parts, weights, strict=True)):
            with autocast(self.device, self.dtype):
                outputs = self.share.outputs(self.forward, micro_images)
            if len(micro_images):
                loss, logits = loss_with_aux_heads(
                    self.criterion, outputs, micro_targets, self.settings.aux_loss_weight
                )
            else:
                loss, logits = empty_loss(outputs)
            if number == len(parts) - 1:
                self.gradient_sum.begin_last_backward()
            self.scaler.scale(loss * (weight / total)).backward()
            counted.append((loss.detach(), logits.detach()[: len(micro_images)], micro_targets))
        return counted

    def _all_finite(self, losses: list[torch.Tensor]) -> torch.Tensor:
        if len(losses) == 1:
            return losses[0].isfinite()
        return torch.stack(losses).isfinite().all() if losses else torch.ones((), dtype=torch.bool, device=self.device)

    def _may_update(self, finite: torch.Tensor, batch: Batch) -> bool:
        """Clip the gradient, and say whether the update may happen.

        `skip` has to know before the update, so it reads from the device here at each step. Otherwise the guard
        reads one step later, when the device has moved on, and so costs no stall.
        """
        skips = self.settings.on_nonfinite == "skip"
        if self.settings.clip_grad_norm is not None or skips:
            self.scaler.unscale_(self.optimizer)
            limit = self.settings.clip_grad_norm or math.inf
            norm = self.weights.clip(self._parameters(), limit)
            # With fp16 an infinite gradient is the scaler's business: it skips the update and scales down.
            if not self.scaler.is_enabled():
                finite = finite & norm.isfinite()
        rate = self.learning_rate(self.step)
        if not skips:
            self.guard.watch(finite, batch, self.step, rate)
            return True
        if bool(finite):
            return True
        self.num_skipped_steps += 1
        self.guard.report(batch, self.step, rate)
        log.warning("step %d: loss or gradient is not finite, the update is skipped", self.step)
        return False

    def _step_within_memory(self, batch: Batch) -> None:
        """`train_step`; if the device runs out of memory, again with smaller micro-batches.

        Nothing of a step remains before its update, except batch-norm statistics of the micro-batches that fitted.
        """
        while True:
            try:
                self.train_step(batch)
                return
            except torch.OutOfMemoryError as error:
                if self._updating:
                    raise
                if self.share.talks_in_forward:  # and was cut in the middle
                    raise whole_run_out_of_memory(self.num_micro_batches, error) from error
                self.num_micro_batches = double_grad_accum(self.num_micro_batches, self.share.largest(batch), error)

    def _parameters(self) -> list[nn.Parameter]:
        """Those that the optimizer has."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    # ------------------------------------------------------------------ around the step

    def _set_train_mode(self) -> None:
        frozen = self.settings.freeze_backbone and (
            self.settings.unfreeze_epoch is None or self.epoch + 1 < self.settings.unfreeze_epoch
        )
        if self.settings.freeze_backbone:
            if self.epoch + 1 == self.settings.unfreeze_epoch and self.batch == 0:
                log.info("epoch %d: the backbone trains from here on", self.epoch + 1)
            set_backbone_trainable(self.model, self.head, trainable=not frozen, fixed=self.fixed)
        self.gradient_sum.watch(self._parameters())
        train_mode(self.model, self.head, backbone_frozen=frozen)

    def learning_rate(self, step: int) -> float:
        """The largest rate of any parameter group at `step`."""
        return max(group["initial_lr"] for group in self.optimizer.param_groups) * self.schedule.factor(step)

    def _after_step(self) -> None:
        """What is due between two steps of an epoch: log, evaluate, save."""
        if self.step % self.settings.log_every_steps == 0:
            self._flush_window()
        if not self._evaluate_between_steps() and self._save_is_due():
            self.save()

    def _evaluate_between_steps(self) -> bool:
        """Evaluate if `eval_every_steps` says so at this step and it was not done yet; True if it was done now."""
        every = self.settings.eval_every_steps
        if every is None or self.batch == 0 or self.step % every != 0 or self.evaluated_step == self.step:
            return False
        evaluated = self.evaluate()
        self._set_train_mode()
        return evaluated

    def _save_is_due(self) -> bool:
        steps, minutes = self.settings.save_every_steps, self.settings.save_every_minutes
        by_steps = steps is not None and self.step % steps == 0
        return by_steps or (minutes is not None and self.coordinator.now() - self._last_save >= minutes * 60)

    def _flush_window(self) -> None:
        """Log what was counted since the last time. The one place in training where the host reads sums."""
        values = self.window.read_window()
        if not values:
            return
        values["train/lr"] = self.learning_rate(self.step - 1)
        values |= self.stopwatch.read_window()
        self.logger.log_metrics(self.step, self._finished_epoch(), values)
        self.clock.settle()
        self.clock.lap("logging")
        self.progress.show(
            f"loss {values['train/loss']:.4f}  accuracy {values['train/accuracy']:.4f}  "
            f"lr {values['train/lr']:.2e}  {values.get('perf/images_per_second', 0):,.0f} images/s"
        )

    def finish_epoch(self) -> None:
        """Log the epoch, evaluate and save as they are due; also after an epoch that a limit has cut short.

        An evaluation that the user stops leaves the epoch's end due, so that a resumed run begins with it.
        """
        self._flush_window()
        epoch = self._finished_epoch()
        values = self.window.read_epoch()
        if values:
            self.logger.log_metrics(self.step, epoch, values)
            text = ", ".join(f"{name.removeprefix('train/epoch_')} {value:.4f}" for name, value in values.items())
            log.info("epoch %d/%d, step %d: train %s", epoch + 1, self.settings.epochs, self.step, text)
        due = (epoch + 1) % self.settings.eval_every_epochs == 0 or self._end_reason() is not None
        if due and self.evaluated_step != self.step:
            self.evaluate()
            return
        self.epoch_end_due = False
        if self._save_is_due():
            self.save()

    def _finished_epoch(self) -> int:
        """The epoch (from 0) that the last step belonged to: at its end the position is already the next one's."""
        return self.epoch if self.batch else max(self.epoch - 1, 0)

    def evaluate(self) -> bool:
        """Evaluate on the val split, log, follow the monitor, save. False if the user stopped it."""
        self.guard.check()  # weights that a loss of NaN has reached are not worth it
        self.clock.lap("other")
        self.share_buffers()
        self.progress.start("evaluating", self.val_loader.num_images)
        evaluation = evaluate_split(
            self.enter(self.average.model),
            self.val_loader.epoch(0),
            criterion=self.criterion,
            normalizer=self.normalizer,
            device=self.device,
            dtype=self.dtype,
            num_classes=self.num_classes,
            flip=self.settings.eval_flip,
            on_batch=self.progress.advance,
            coordinator=self.coordinator,
            world=self.world,
            in_parts=self.weights.is_sharded,
        )
        self.clock.lap("evaluation")
        if evaluation.interrupted:
            return False
        epoch = self._finished_epoch()
        evaluation.step, evaluation.epoch = self.step, epoch
        self.last_evaluation = evaluation
        self.evaluated_step = self.step
        self.last_metrics = {f"val/{name}": value for name, value in evaluation.metrics.items()}
        self.logger.log_metrics(self.step, epoch, self.last_metrics)
        monitored = self.last_metrics[self.monitor.name]
        self.schedule.observe(monitored)
        is_best = self.monitor.observe(monitored, self.step)
        if is_best:
            self.best_evaluation = evaluation
        log.info(
            "epoch %d/%d, step %d: val loss %.4f, accuracy %.4f%s",
            epoch + 1,
            self.settings.epochs,
            self.step,
            evaluation.metrics["loss"],
            evaluation.metrics["accuracy"],
            " (best so far)" if is_best else "",
        )
        self.clock.lap("logging")
        # Saved as it will be when the run goes on from here: the epoch's end is done.
        self.epoch_end_due = False
        self.num_rollbacks = 0
        self.save(best=is_best and self.settings.save_best)
        return True

    def _end_reason(self) -> StopReason | None:
        settings = self.settings
        patience = settings.early_stop_patience
        if patience is not None and self.monitor.num_bad_evals >= patience:
            return StopReason.early_stop
        if settings.max_steps is not None and self.step >= settings.max_steps:
            return StopReason.max_steps
        if settings.max_minutes is not None and self.seconds_so_far() >= settings.max_minutes * 60:
            return StopReason.max_minutes
        if self.epoch >= settings.epochs:
            return StopReason.epochs
        # Only rank 0 has loggers: a trial of several processes runs to its end.
        if self.world.world_size == 1 and self.logger.stop_requested:
            return StopReason.pruned
        return None

    def seconds_so_far(self) -> float:
        """Seconds in `fit`, those before a restart included."""
        return self.elapsed_seconds + self.coordinator.now() - self._clock

    def save(self, *, best: bool = False) -> None:
        """Hand a snapshot to the checkpoint store: as last.pt, and as best.pt if it is the best so far."""
        # Weights that a loss of NaN has reached are no state to go on from.
        self.guard.check()
        self._last_save = self.coordinator.now()
        self.share_buffers()
        names = ("last.pt", "best.pt") if best else ("last.pt",)
        self.store.save(training_state(self) | self.describe, names=names)
        self.clock.lap("checkpoint")

    def share_buffers(self) -> None:
        """Give all processes rank 0's buffers, such as the statistics of batch norm, each of which has its own."""
        self.world.broadcast_([*self.model.buffers(), *self.average.model.buffers()])

    def _roll_back(self, error: NonFiniteLossError) -> None:
        """Go back to the last checkpoint with a smaller learning rate, if that is wanted and may still help."""
        self.guard.forget()
        if self.settings.on_nonfinite != "rollback" or self.num_rollbacks >= MAX_ROLLBACKS:
            raise error
        scale, rollbacks = self.lr_scale * self.settings.rollback_lr_factor, self.num_rollbacks + 1
        if not roll_back(self):
            raise error
        scale_learning_rates(self, scale)
        self.num_rollbacks = rollbacks
        log.warning(
            "%s\n  back to the checkpoint of step %d, from here on with %g times the learning rate of the config",
            str(error).splitlines()[0],
            self.step,
            scale,
        )
