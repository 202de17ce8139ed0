"""What a run does when numbers are not finite or the device's memory does not suffice."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cvtrain.checkpoint import latest_checkpoint, load_checkpoint
from cvtrain.config.errors import RunError
from cvtrain.config.schema.trainer import OnNonfinite, TrainerConfig
from cvtrain.data.loader.batch import Batch
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.training.state import TrainState, restore_entries

if TYPE_CHECKING:
    from cvtrain.training.parts import TrainerParts

log = logging.getLogger(__name__)

NONFINITE_FILE = "nonfinite_batches.txt"
# Rollbacks without a later evaluation in between, after which the run gives up.
MAX_ROLLBACKS = 5


class NonFiniteLossError(RunError):
    """The loss or the gradient became NaN or infinite: the message gives the step, the learning rate and the batch."""


class NonFiniteGuard:
    """Checks that the loss of each step is finite, one step late, so that the device is not waited for.

    Args:
        run_dir: gets nonfinite_batches.txt with the names of the images of each such batch.
        image_name: from a place in the train split to the image's name.
    """

    def __init__(self, *, run_dir: Path, image_name: Callable[[int], str]) -> None:
        self.path = run_dir / NONFINITE_FILE
        self.image_name = image_name
        self._pending: tuple[torch.Tensor, Batch, int, float] | None = None

    def observe(self, finite: torch.Tensor, batch: Batch, step: int, lr: float) -> bool:
        """Keep `finite`, () bool on the device, and check that of the step before. Returns whether to update.

        Raises:
            NonFiniteLossError: the step before this one was not finite.
        """
        self.raise_if_nonfinite()
        self._pending = (finite, batch, step, lr)
        return True

    def raise_if_nonfinite(self) -> None:
        """Check the last step now; waits for the device.

        Raises:
            NonFiniteLossError: it was not finite.
        """
        if self._pending is None:
            return
        finite, batch, step, lr = self._pending
        self._pending = None
        if bool(finite):
            return
        self.record(batch, step, lr)
        raise NonFiniteLossError(
            f"step {step}: the loss is not finite, at learning rate {lr:g}. "
            f"The batch's images are listed in {self.path}.\n"
            "  try a smaller optimizer.lr, scheduler.warmup_epochs=1, trainer.clip_grad_norm=1, "
            "trainer.precision=fp32, trainer.on_nonfinite=rollback or trainer.on_nonfinite=skip"
        )

    def reset(self) -> None:
        """Forget the last step."""
        self._pending = None

    def record(self, batch: Batch, step: int, lr: float) -> None:
        """Append the names of the batch's images to the list."""
        names = [self.image_name(int(index)) for index in batch.indices]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"step {step}, epoch {batch.epoch + 1}, learning rate {lr:g}\n")
            file.writelines(f"  {name}\n" for name in names)


class SkippingGuard(NonFiniteGuard):
    """`trainer.on_nonfinite=skip`: decides before the update, so it waits for the device in each step."""

    def observe(self, finite: torch.Tensor, batch: Batch, step: int, lr: float) -> bool:
        if bool(finite):
            return True
        self.record(batch, step, lr)
        log.warning("step %d: loss or gradient is not finite, the update is skipped", step)
        return False


def build_guard(config: TrainerConfig, *, run_dir: Path, image_name: Callable[[int], str]) -> NonFiniteGuard:
    """Return the guard that `trainer.on_nonfinite` asks for."""
    guard = SkippingGuard if config.on_nonfinite is OnNonfinite.skip else NonFiniteGuard
    return guard(run_dir=run_dir, image_name=image_name)


def build_clipping(config: TrainerConfig, *, fp16: bool) -> Callable[[list[nn.Parameter]], torch.Tensor | bool]:
    """Return what clips the gradient of some parameters before an update and returns whether it is finite, () bool."""
    if config.clip_grad_norm is None and config.on_nonfinite is not OnNonfinite.skip:
        return leave_gradient  # a norm has its price beside a small step
    return partial(clip_gradient, max_norm=config.clip_grad_norm or math.inf, fp16=fp16)


def clip_gradient(parameters: list[nn.Parameter], *, max_norm: float, fp16: bool = False) -> torch.Tensor | bool:
    """Scale the gradient to an L2 norm of `max_norm` at most; returns whether it is finite.

    With fp16 an infinite gradient is the scaler's business: it skips the update and scales down.
    """
    finite = nn.utils.clip_grad_norm_(parameters, max_norm).isfinite()
    return True if fp16 else finite


def leave_gradient(parameters: list[nn.Parameter]) -> bool:
    """Stand in for `clip_gradient` where nothing is clipped."""
    return True


def roll_back(error: NonFiniteLossError, state: TrainState, parts: "TrainerParts", *, lr_factor: float) -> TrainState:
    """Return to the last checkpoint with a smaller learning rate.

    Raises:
        NonFiniteLossError: `error`, since there is no checkpoint or rolling back did not help before.
    """
    if state.num_rollbacks >= MAX_ROLLBACKS:
        raise error
    parts.store.wait()
    found = latest_checkpoint(parts.store.folder) if parts.world.is_main_process else None
    path = parts.world.broadcast(None if found is None else found[0])
    if path is None:
        raise error
    entries = load_checkpoint(path) if found is None else found[1]
    restored = restore_entries(parts, entries)
    parts.logger.rewind(entries["loggers"])
    restored.lr_scale, restored.num_rollbacks = state.lr_scale * lr_factor, state.num_rollbacks + 1
    log.warning(
        "%s\n  back to the checkpoint of step %d, from here on with %g times the learning rate of the config",
        str(error).splitlines()[0],
        restored.step,
        restored.lr_scale,
    )
    return restored


def all_finite(losses: list[torch.Tensor]) -> torch.Tensor:
    """Return () bool: whether all of some () losses are finite. One operation for the usual single one."""
    return losses[0].isfinite() if len(losses) == 1 else torch.stack(losses).isfinite().all()


def step_within_memory(step: Callable[[Batch], int], batch: Batch, state: TrainState, world: ProcessGroup) -> int:
    """Call `step`; if the device runs out of memory, again with smaller micro-batches. Returns what it returns.

    Nothing of a step remains before its update, except batch-norm statistics of the micro-batches that fitted.
    """
    while True:
        try:
            return step(batch)
        except torch.OutOfMemoryError as error:
            state.grad_accum_steps = double_grad_accum(
                state.grad_accum_steps, len(batch), error, world_size=world.world_size
            )


@contextlib.contextmanager
def no_second_try() -> Iterator[None]:
    """Surround an update, half of which may be done when memory runs out: the step cannot be repeated then."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory on the device in the optimizer's update: {error}\n"
            "  use a smaller model, optimizer=sgd, or a device with more memory"
        ) from error


def double_grad_accum(current: int, batch_size: int, error: torch.OutOfMemoryError, *, world_size: int = 1) -> int:
    """Return twice as many micro-batches, after the device ran out of memory; the batch of a step stays the same.

    Raises:
        RunError: a micro-batch is a single image already; or other ranks wait within the step.
    """
    if world_size > 1:
        raise RunError(
            f"out of memory on the device: {error}\n"
            f"  set trainer.grad_accum_steps={2 * current}, a smaller data.batch_size or trainer.precision=bf16"
        ) from error
    if current >= batch_size:
        raise RunError(
            f"out of memory on the device with a single image at a time: {error}\n"
            "  use a smaller model or data.image_size, trainer.precision=bf16, or a device with more memory"
        ) from error
    parts = min(2 * current, batch_size)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning(
        "out of memory on the device: from here on a batch is split into %d micro-batches of at most %d images. "
        "To start so: trainer.grad_accum_steps=%d",
        parts,
        -(-batch_size // parts),
        parts,
    )
    return parts
