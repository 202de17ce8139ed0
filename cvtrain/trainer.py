"""The loop: for each epoch train, evaluate, log, checkpoint. The step is one method, `train_step`.

There are no callbacks. Who needs a hook edits these lines or overrides one method.
"""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.averaging import NoAverage, WeightAverage
from cvtrain.checkpoint import save_checkpoint, to_cpu
from cvtrain.config.errors import RunError
from cvtrain.data.augment.batch import BatchTransform
from cvtrain.data.loading import Batch, BatchLoader
from cvtrain.evaluation import Evaluation, evaluate_split
from cvtrain.interruption import StopSignal
from cvtrain.loggers.build import RunLogger
from cvtrain.losses import model_loss
from cvtrain.models.freeze import set_backbone_trainable, train_mode
from cvtrain.normalization import Normalizer
from cvtrain.optim.schedule import Schedule, apply_schedule
from cvtrain.progress import ProgressBar
from cvtrain.runtime import autocast, derive_seed, seed_step
from cvtrain.tracking import Monitor, Stopwatch, TrainWindow, now

log = logging.getLogger(__name__)

# Parts of derive_seed that keep the streams of random numbers apart.
BATCH_TRANSFORM_STREAM = 0xBA7C


class NonFiniteLossError(RunError):
    """The loss or the gradient became NaN or infinite: the message gives the step, the rate and the batch."""


class EndReason(str, Enum):
    """Why `fit` returned."""

    epochs = "all epochs done"
    max_steps = "trainer.max_steps reached"
    max_minutes = "trainer.max_minutes reached"
    early_stop = "early stopping: no better monitor"
    interrupted = "interrupted"


@dataclass(frozen=True)
class TrainerSettings:
    """Numbers of the loop; meanings and ranges as in the config's group `trainer`."""

    epochs: int
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    grad_accum_steps: int = 1
    clip_grad_norm: float | None = None
    skip_nonfinite: bool = False
    early_stop_patience: int | None = None
    eval_every_epochs: int = 1
    eval_every_steps: int | None = None
    log_every_steps: int = 20
    checkpoint_every_epochs: int = 1
    save_best: bool = True
    aux_loss_weight: float = 0.0
    unfreeze_epoch: int | None = None
    freeze_backbone: bool = False


class Trainer:
    """Trains `model` and leaves checkpoints and metrics behind.

    One clock: `step` counts optimizer updates. `epoch` and `batch` say where in the data the next step is.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: tuple[str, ...],
        fixed: frozenset[str],
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        average: WeightAverage | NoAverage,
        normalizer: Normalizer,
        batch_transform: BatchTransform,
        train_loader: BatchLoader,
        val_loader: BatchLoader,
        num_classes: int,
        monitor: Monitor,
        logger: RunLogger,
        progress: ProgressBar,
        device: torch.device,
        dtype: torch.dtype,
        run_dir: Path,
        describe: dict[str, Any],
        image_name: Callable[[int], str],
        settings: TrainerSettings,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.head = head
        self.fixed = fixed
        # Evaluation and checkpoints use the plain module, so that figures do not depend on compilation.
        self.forward: Callable[[torch.Tensor], Any] = torch.compile(model) if compiled else model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
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
        self.image_name = image_name
        self.settings = settings

        self.step = 0
        self.epoch = 0
        self.batch = 0
        self.window = TrainWindow(device)
        self.stopwatch = Stopwatch()
        self.num_skipped_steps = 0
        self.best_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self.stop_signal = StopSignal()
        self._pending_check: tuple[torch.Tensor, Batch, int] | None = None
        self._has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        self._started = now()

    # ------------------------------------------------------------------ the run

    def fit(self) -> EndReason:
        """Train until something ends the run; evaluates and saves on the way and at the end.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite and `skip_nonfinite` is off.
        """
        with ExitStack() as stack:
            stack.enter_context(self.stop_signal)
            stack.callback(self.progress.close)
            reason = self._end_reason()
            while reason is None:
                self.train_epoch()
                reason = self._end_reason()
                if reason is EndReason.interrupted:
                    break
                self._after_epoch(last=reason is not None)
                reason = self._end_reason()
            self._flush_window()
            self.save("last.pt")
        return reason

    def train_epoch(self) -> None:
        """Train on what is left of the epoch; ends early at a limit or at the user's wish to stop."""
        self._set_train_mode()
        seen = self.batch * self.train_loader.batch_size
        self.progress.start(f"epoch {self.epoch + 1}/{self.settings.epochs}", self.train_loader.num_images, seen)
        waiting_since = now()
        for batch in self.train_loader.epoch(self.epoch, start_batch=self.batch):
            working_since = now()
            self.batch += 1
            if self._is_trainable(batch):
                self.train_step(batch)
            self.progress.advance(len(batch.labels))
            finished = now()
            self.stopwatch.add(
                wait_seconds=working_since - waiting_since,
                step_seconds=finished - working_since,
                num_images=len(batch.labels),
            )
            self._after_step()
            if self._end_reason() is not None:
                break
            waiting_since = now()
        self._check_pending()
        if self.batch >= self.train_loader.num_batches:
            self.epoch, self.batch = self.epoch + 1, 0

    def train_step(self, batch: Batch) -> None:
        """One optimizer update on one batch of uint8 images."""
        seed_step(self.settings.seed, self.step)
        apply_schedule(self.optimizer, self.schedule, self.step)
        images = self.normalizer.to_unit(batch.images.to(self.device, non_blocking=True))
        labels = batch.labels.to(self.device, non_blocking=True)
        images, targets = self.batch_transform(
            images, labels, derive_seed(self.settings.seed, BATCH_TRANSFORM_STREAM, self.step)
        )
        images = self.normalizer.normalize(images)

        self.optimizer.zero_grad(set_to_none=True)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for micro_images, micro_targets in self._micro_batches(images, targets):
            with autocast(self.device, self.dtype):
                outputs = self.forward(micro_images)
            loss, logits = model_loss(self.criterion, outputs, micro_targets, self.settings.aux_loss_weight)
            self.scaler.scale(loss * (len(micro_images) / len(images))).backward()
            self.window.add(loss, logits, micro_targets)
            finite &= loss.detach().isfinite()

        if self._may_update(finite, batch):
            self.scaler.step(self.optimizer)
            self.average.update(self.model)
        self.scaler.update()
        self.step += 1

    def _micro_batches(self, images: torch.Tensor, targets: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = min(self.settings.grad_accum_steps, len(images))
        return list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))

    def _may_update(self, finite: torch.Tensor, batch: Batch) -> bool:
        """Clip the gradient, and say whether the update may happen.

        `skip` has to know before the update, so it reads from the device here at each step. `stop` reads one
        step later, when the device has moved on, and so costs no stall; the run ends anyway.
        """
        if self.settings.clip_grad_norm is not None or self.settings.skip_nonfinite:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            limit = self.settings.clip_grad_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            # With fp16 an infinite gradient is the scaler's business: it skips the update and scales down.
            if not self.scaler.is_enabled():
                finite = finite & norm.isfinite()
        if not self.settings.skip_nonfinite:
            self._check_pending()
            self._pending_check = (finite, batch, self.step)
            return True
        if bool(finite):
            return True
        self.num_skipped_steps += 1
        self._report_nonfinite(batch, self.step)
        log.warning("step %d: loss or gradient is not finite, the update is skipped", self.step)
        return False

    # ------------------------------------------------------------------ around the step

    def _is_trainable(self, batch: Batch) -> bool:
        """False for a batch with no image left, or with a single one, whose batch statistics mean nothing."""
        if len(batch.labels) == 0:
            return False
        return len(batch.labels) > 1 or not self._has_batch_norm or self.train_loader.batch_size == 1

    def _set_train_mode(self) -> None:
        frozen = self.settings.freeze_backbone and (
            self.settings.unfreeze_epoch is None or self.epoch + 1 < self.settings.unfreeze_epoch
        )
        if self.settings.freeze_backbone:
            if self.epoch + 1 == self.settings.unfreeze_epoch and self.batch == 0:
                log.info("epoch %d: the backbone trains from here on", self.epoch + 1)
            set_backbone_trainable(self.model, self.head, trainable=not frozen, fixed=self.fixed)
        train_mode(self.model, self.head, backbone_frozen=frozen)

    def _check_pending(self) -> None:
        if self._pending_check is None:
            return
        finite, batch, step = self._pending_check
        self._pending_check = None
        if not bool(finite):
            path = self._report_nonfinite(batch, step)
            raise NonFiniteLossError(
                f"step {step}: the loss is not finite, at learning rate {self._learning_rate(step):g}. "
                f"The batch's files are in {path}. Try a smaller optimizer.lr, scheduler.warmup_epochs=1, "
                "trainer.clip_grad_norm=1, trainer.precision=fp32, or trainer.on_nonfinite=skip"
            )

    def _report_nonfinite(self, batch: Batch, step: int) -> Path:
        path = self.run_dir / "nonfinite_batches.txt"
        names = [self.image_name(int(index)) for index in batch.indices]
        with path.open("a", encoding="utf-8") as file:
            file.write(f"step {step}, epoch {self.epoch + 1}, learning rate {self._learning_rate(step):g}\n")
            file.writelines(f"  {name}\n" for name in names)
        return path

    def _learning_rate(self, step: int) -> float:
        """The largest rate of any parameter group at `step`."""
        return max(group["initial_lr"] for group in self.optimizer.param_groups) * self.schedule.factor(step)

    def _after_step(self) -> None:
        if self.step % self.settings.log_every_steps == 0:
            self._flush_window()
        every = self.settings.eval_every_steps
        if every is not None and self.step % every == 0 and self.batch < self.train_loader.num_batches:
            self.evaluate()
            self._set_train_mode()

    def _flush_window(self) -> None:
        """Log what was counted since the last time. The one place in training where the host reads sums."""
        values = self.window.read_window()
        if not values:
            return
        values["train/lr"] = self._learning_rate(self.step - 1)
        values |= self.stopwatch.read_window()
        self.logger.log_metrics(self.step, self._finished_epoch(), values)
        self.progress.show(
            f"loss {values['train/loss']:.4f}  accuracy {values['train/accuracy']:.4f}  "
            f"lr {values['train/lr']:.2e}  {values.get('perf/images_per_second', 0):,.0f} images/s"
        )

    def _after_epoch(self, last: bool) -> None:
        """Evaluate, log and save as they are due; also after an epoch that a limit has cut short."""
        self._flush_window()
        epoch = self._finished_epoch()
        values = self.window.read_epoch()
        due = (epoch + 1) % self.settings.eval_every_epochs == 0 or last
        evaluated = due and self.evaluate()
        text = ", ".join(f"{name.removeprefix('train/epoch_')} {value:.4f}" for name, value in values.items())
        log.info("epoch %d/%d: train %s%s", epoch + 1, self.settings.epochs, text, self._evaluation_text(evaluated))
        self.logger.log_metrics(self.step, epoch, values)
        if (epoch + 1) % self.settings.checkpoint_every_epochs == 0:
            self.save("last.pt")

    def _finished_epoch(self) -> int:
        """The epoch (from 0) that the last step belonged to: at its end the position is already the next one's."""
        return self.epoch if self.batch else max(self.epoch - 1, 0)

    def _evaluation_text(self, evaluated: bool) -> str:
        if not evaluated or self.last_evaluation is None:
            return ""
        metrics = self.last_evaluation.metrics
        mark = " (best so far)" if self.best_evaluation is self.last_evaluation else ""
        return f" | val loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f}{mark}"

    def evaluate(self) -> bool:
        """Evaluate on the val split, log, follow the monitor, keep best.pt. False if the user stopped it."""
        self.progress.start("evaluating", self.val_loader.num_images)
        evaluation = evaluate_split(
            self.average.model,
            self.val_loader.epoch(0),
            criterion=self.criterion,
            normalizer=self.normalizer,
            device=self.device,
            dtype=self.dtype,
            num_classes=self.num_classes,
            on_batch=self.progress.advance,
            should_stop=lambda: self.stop_signal.received is not None,
        )
        if evaluation.interrupted:
            return False
        epoch = self._finished_epoch()
        evaluation.step, evaluation.epoch = self.step, epoch
        self.last_evaluation = evaluation
        values = {f"val/{name}": value for name, value in evaluation.metrics.items()}
        self.logger.log_metrics(self.step, epoch, values)
        monitored = values[self.monitor.name]
        self.schedule.observe(monitored)
        if self.monitor.observe(monitored, self.step):
            self.best_evaluation = evaluation
            if self.settings.save_best:
                self.save("best.pt")
        return True

    def _end_reason(self) -> EndReason | None:
        settings = self.settings
        if self.stop_signal.received is not None:
            return EndReason.interrupted
        patience = settings.early_stop_patience
        if patience is not None and self.monitor.num_without_better >= patience:
            return EndReason.early_stop
        if settings.max_steps is not None and self.step >= settings.max_steps:
            return EndReason.max_steps
        if settings.max_minutes is not None and now() - self._started >= settings.max_minutes * 60:
            return EndReason.max_minutes
        if self.epoch >= settings.epochs:
            return EndReason.epochs
        return None

    # ------------------------------------------------------------------ what it keeps

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on from here, on the CPU."""
        return to_cpu(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "monitor": self.monitor.state_dict(),
                "window": self.window.state_dict(),
                "position": {"step": self.step, "epoch": self.epoch, "batch": self.batch},
                "loggers": self.logger.state(),
            }
        )

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>`; a failure (full disk, read-only folder) is a warning, training goes on."""
        evaluation = self.last_evaluation
        metrics = {f"val/{key}": value for key, value in evaluation.metrics.items()} if evaluation else {}
        state = self.state_dict() | self.describe | {"metrics": metrics}
        path = self.run_dir / "checkpoints" / name
        try:
            save_checkpoint(path, state)
        except OSError as error:
            log.warning("%s could not be saved, the one before it is kept: %s", path, error)
