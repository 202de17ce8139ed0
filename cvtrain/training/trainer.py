"""The loop: for each epoch train, evaluate, log, checkpoint. The step is one method, `train_step`.

There are no callbacks. Who needs a hook edits these lines or overrides one method.
"""

import logging
from contextlib import ExitStack
from typing import Any

import torch

from cvtrain.checkpoint import BEST, LAST
from cvtrain.config.errors import RunError
from cvtrain.config.schema.trainer import Average, OnNonfinite
from cvtrain.data.build import Batch
from cvtrain.data.loader.prefetch import prefetch_to_device, to_device
from cvtrain.losses import loss_with_aux_heads
from cvtrain.models.heads import init_head
from cvtrain.optim.schedule import apply_schedule
from cvtrain.runtime.precision import autocast
from cvtrain.runtime.rng import derive_rank_seed, seed_step
from cvtrain.training import nonfinite
from cvtrain.training.calibration import fit_temperature
from cvtrain.training.evaluator import Evaluation
from cvtrain.training.parts import TrainerParts
from cvtrain.training.state import StopReason, collect_entries, reached_limit, restore_entries
from cvtrain.training.wise_ft import START, average_with_start

log = logging.getLogger(__name__)

# Part of derive_seed that keeps this stream of random numbers apart from others.
BATCH_TRANSFORM_STREAM = 0xBA7C


class Trainer(TrainerParts):
    """Trains `model` and leaves checkpoints and metrics behind. `TrainerParts` has the arguments and their defaults.

    Of several ranks (`world`), all go through the same steps with their shares of each batch, and what they do between
    steps they agree on. Rank 0 alone has loggers, a bar and a store that writes.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.best_evaluation: Evaluation | None = None
        self.last_evaluation: Evaluation | None = None
        self._clock = self._last_save = self.coordinator.now()

    @property
    def step(self) -> int:
        """Optimizer updates so far."""
        return self.state.step

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
        """Do what `fit` does, without the wait for its last checkpoint, which may still be on its way to the disk."""
        with ExitStack() as stack:
            stack.enter_context(self.stop_signals.deferred())
            stack.callback(self.progress.close)
            self.coordinator.sync()
            self._clock = self._last_save = self.coordinator.now()
            self.timer.start()
            if self._end_reason() is None:
                self.train_loader.start()
            if self._end_reason() is None or self.step == 0:
                self.val_loader.start()
            if self.config.on_nonfinite is OnNonfinite.rollback and self.step == 0:
                self.save()
            if self.config.average is Average.wise_ft and self.step == 0:
                self.save(names=(START,))
            if self.config.eval_at_start and self.step == 0 and self.state.evaluated_step < 0:
                self.evaluate()
            if self.step == 0:
                for network in (self.model, self.ema.model):
                    init_head(network, self.head_to_reset)
            while self.state.epoch_end_due or self._end_reason() is None:
                try:
                    if not self.state.epoch_end_due:
                        self.train_epoch()
                    if self.state.epoch_end_due and self.coordinator.received is None:
                        self.finish_epoch()
                except nonfinite.NonFiniteLossError as error:
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
            self.coordinator.sync()  # of a signal after the last step
            reason = self._end_reason()
            assert reason is not None
            if self.config.average is Average.wise_ft and self.step and reason is not StopReason.pruned:
                average_with_start(self)
                if self.coordinator.received is not None:
                    return StopReason.interrupted
        return reason

    def train_epoch(self) -> None:
        """Train on what is left of the epoch; ends early at a limit or a signal."""
        state, loader = self.state, self.train_loader
        self._set_train_mode()
        if state.batch:  # an evaluation that a signal stopped before a restart
            self._evaluate_or_save(every(self.config.eval_every_steps, state.step))
        self.reporter.start_epoch(state, loader)
        began_at, trained = state.batch, 0
        counted = self.timer.count_batches(loader.epoch(state.epoch, start_batch=state.batch))
        arriving = prefetch_to_device(counted, self.device, arrived=lambda: self.timer.mark("wait"))
        self.stopwatch.start()
        for batch in self.coordinator.report_failures(arriving):
            self.timer.mark("transfer")
            self.stopwatch.batch_arrived()
            num_images = nonfinite.step_within_memory(self.train_step, batch, state, self.world)
            state.batch += 1
            trained += num_images
            self.progress.advance(num_images)
            self.stopwatch.step_done(num_images)
            if state.batch < loader.num_batches:
                self._after_step()
            if self.coordinator.received is not None or self._end_reason() is not None:
                break
            self.timer.mark("other")
            self.stopwatch.start()
        self.guard.raise_if_nonfinite()
        if state.batch >= loader.num_batches:
            if began_at == trained == 0:
                raise RunError(
                    f"epoch {state.epoch + 1} had nothing to train on: no image could be read, or too few for a step\n"
                    "  mend or replace the files; warnings above name the first of them"
                )
            state.epoch, state.batch, state.epoch_end_due = state.epoch + 1, 0, True
        elif self.coordinator.received is None:
            state.epoch_end_due = True

    def train_step(self, batch: Batch) -> int:
        """Take one optimizer step on one batch of uint8 images, which may be on the device already.

        Returns the number of images of all ranks; 0: some rank has too few that could be read, no step was taken.
        """
        state = self.state
        count = self.coordinator.sync(len(batch))
        if count.smallest < self.min_images:
            return 0
        seed_step(self.seed, state.step, self.world.rank)
        apply_schedule(self.optimizer, self.schedule, state.step, scale=state.lr_scale)
        self.optimizer.zero_grad(set_to_none=True)
        images, targets = self._prepare(batch)
        num_parts = min(state.grad_accum_steps, count.smallest)
        total = self.replica.total_weight(self.criterion.total_weight(targets), count.total)
        done: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for part_images, part_targets in zip(
            images.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True
        ):
            with self.replica.gradients_of(last=len(done) == num_parts - 1):
                with autocast(self.device, self.dtype):
                    outputs = self.forward(part_images)
                loss, logits = loss_with_aux_heads(self.criterion, outputs, part_targets, self.aux_loss_weight)
                weight = self.criterion.total_weight(part_targets)
                self.scaler.scale(loss * (weight / total)).backward()
            done.append((loss.detach(), logits.detach(), part_targets))
        self.timer.mark("forward_backward")

        with nonfinite.no_second_try():
            self.scaler.unscale_(self.optimizer)
            finite = nonfinite.all_finite([loss for loss, _, _ in done]) & self.clip(self.parameters)
            if self.guard.observe(self.world.all_true(finite), batch, state.step, self.learning_rate(state.step)):
                self.scaler.step(self.optimizer)
                self.ema.update(self.model)
                for loss, logits, part_targets in done:
                    self.window.add(loss, logits, part_targets)
            else:
                state.num_skipped_steps += 1
            self.scaler.update()
        self.timer.mark("optimizer")
        state.step += 1
        return count.total

    def _prepare(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (B, C, S, S), augmented, mixed and normalized on the device, and targets."""
        images = self.normalizer.to_float(to_device(batch.images, self.device))
        labels = to_device(batch.labels, self.device)
        seed = derive_rank_seed(self.seed, BATCH_TRANSFORM_STREAM, self.step, rank=self.world.rank)
        images, targets = self.batch_transform(images, labels, seed)
        images = self.normalizer.normalize_(images)
        self.timer.mark("prepare")
        return images, targets

    # ------------------------------------------------------------------ around the step

    def _set_train_mode(self) -> None:
        self.freeze.set_train_mode(self.model, self.state.epoch)
        self.replica.prepare()

    def learning_rate(self, step: int) -> float:
        """Return the largest learning rate of any parameter group at `step`."""
        peak = max(group["initial_lr"] for group in self.optimizer.param_groups)
        return peak * self.schedule.factor(step) * self.state.lr_scale

    def _after_step(self) -> None:
        """Do what is due between two steps of an epoch: log, evaluate, save."""
        if every(self.config.log_every_steps, self.step):
            self._flush_window()
        self._evaluate_or_save(every(self.config.eval_every_steps, self.step))

    def _evaluate_or_save(self, evaluation_is_due: bool) -> None:
        """Evaluate, which saves too, unless it was done at this step; else save if that is due."""
        if evaluation_is_due and self.state.evaluated_step != self.step:
            self.evaluate()
            return
        self.state.epoch_end_due = False
        minutes = self.checkpoint.every_minutes
        by_clock = minutes is not None and self.coordinator.now() - self._last_save >= minutes * 60
        if by_clock or every(self.checkpoint.every_steps, self.step):
            self.save()

    def _flush_window(self) -> None:
        """Log what was counted since the last time. The one place in training where the host reads sums."""
        values = self.window.read_window()
        if values:
            values["train/lr"] = self.learning_rate(self.step - 1)
            self.reporter.log_steps(self.state, values | self.stopwatch.read_window())
            self.timer.flush()
            self.timer.mark("logging")

    def finish_epoch(self) -> None:
        """Log the epoch, evaluate and save as they are due; also after an epoch that a limit has cut short.

        An evaluation that a signal stops leaves the epoch's end due, so that a resumed run begins with it.
        """
        self._flush_window()
        self.reporter.log_epoch(self.state, self.window.read_epoch())
        is_last = self._end_reason() is not None
        self._evaluate_or_save(is_last or every(self.config.eval_every_epochs, self.state.finished_epoch + 1))
        self.reporter.end_epoch(self.state)
        if not self.state.epoch_end_due:
            self.timer.end_epoch()

    def evaluate(self) -> None:
        """Evaluate on the val split, log, update the monitor, save; unless a signal stops it."""
        state = self.state
        self.guard.raise_if_nonfinite()  # weights that a loss of NaN has reached are not worth it
        self.timer.mark("other")
        evaluation = self.score()
        if evaluation is None:
            return
        self.last_evaluation = evaluation
        state.evaluated_step, state.temperature = state.step, evaluation.temperature
        state.metrics = {f"val/{name}": value for name, value in evaluation.metrics.items()}
        monitored = state.metrics[self.monitor.name]
        self.schedule.observe(monitored)
        is_counted = state.finished_epoch + 1 >= self.config.early_stop_from_epoch
        is_best = self.monitor.observe(monitored, state.step, is_counted=is_counted)
        if is_best:
            self.best_evaluation = evaluation
        else:
            evaluation.predictions.logits = evaluation.predictions.logits[:, :0].copy()  # they take memory
        self.reporter.log_evaluation(state, is_best=is_best)
        self.timer.mark("logging")
        # Saved as it will be when the run resumes from here: the epoch's end is done.
        state.epoch_end_due, state.num_rollbacks = False, 0
        self.save(names=(LAST, BEST) if is_best and self.checkpoint.save_best else (LAST,))
        if state.batch:  # the epoch goes on
            self._set_train_mode()

    def score(self) -> Evaluation | None:
        """Score the val split with the weights as they are; None: a signal stopped it."""
        self._broadcast_buffers()
        self.progress.start("evaluating", self.val_loader.num_images)
        evaluation = self.evaluator.evaluate(self.entry(self.ema.model), self.val_loader.epoch(0))
        self.timer.mark("evaluation")
        if evaluation.interrupted:
            return None
        evaluation.step, evaluation.epoch = self.state.step, self.state.finished_epoch
        if self.config.calibrate:
            evaluation.temperature = fit_temperature(evaluation.predictions)
        return evaluation

    def keep_best(self, evaluation: Evaluation) -> None:
        """Let the weights as they are, which got this evaluation, be those of best.pt."""
        self.best_evaluation = evaluation
        if self.checkpoint.save_best:
            metrics = {f"val/{name}": value for name, value in evaluation.metrics.items()}
            of_best = {"metrics": metrics, "temperature": evaluation.temperature, "end_share": evaluation.average}
            self.store.save(collect_entries(self, self.state) | self.metadata | of_best, names=(BEST,))

    def _end_reason(self) -> StopReason | None:
        # Only rank 0 has loggers: a trial of several ranks runs to its end.
        if self.world.world_size == 1 and self.logger.stop_requested:
            return StopReason.pruned
        return reached_limit(self.config, self.state, self.monitor, self._elapsed())

    def _elapsed(self) -> float:
        """Return the seconds in `fit`, those before a restart included."""
        return self.state.elapsed_seconds + self.coordinator.now() - self._clock

    def save(self, *, names: tuple[str, ...] = (LAST,)) -> None:
        """Hand a snapshot to the checkpoint store."""
        self.guard.raise_if_nonfinite()  # weights that a loss of NaN has reached are no state to resume from
        self._last_save = self.coordinator.now()
        self.state.elapsed_seconds, self._clock = self._elapsed(), self._last_save
        self._broadcast_buffers()
        self.store.save(collect_entries(self, self.state) | self.metadata, names=names)
        self.timer.mark("checkpoint")

    def restore(self, entries: dict[str, Any]) -> None:
        """Put the trainer where a checkpoint's `entries` were collected; see `restore_entries`."""
        self.state = restore_entries(self, entries)
        self.state.grad_accum_steps = max(self.state.grad_accum_steps, self.config.grad_accum_steps)

    def _broadcast_buffers(self) -> None:
        """Give all ranks rank 0's buffers, such as the statistics of batch norm, of which each has its own."""
        self.world.broadcast_([*self.model.buffers(), *self.ema.model.buffers()])

    def _roll_back(self, error: nonfinite.NonFiniteLossError) -> None:
        """Return to the last checkpoint with a smaller learning rate, if `on_nonfinite` says so."""
        self.guard.reset()
        if self.config.on_nonfinite is not OnNonfinite.rollback:
            raise error
        factor, elapsed = self.config.rollback_lr_factor, self._elapsed()
        self.state = nonfinite.roll_back(error, self.state, self, lr_factor=factor)
        self.state.elapsed_seconds, self._clock = elapsed, self.coordinator.now()


def every(period: int | None, count: int) -> bool:
    """Return True if something that happens every `period` counts is due; None: it never is."""
    return period is not None and count % period == 0
