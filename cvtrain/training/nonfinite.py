"""What a run does about numbers that are not finite and memory that does not suffice."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from cvtrain.config.errors import RunError
from cvtrain.data.loader.batch import Batch

log = logging.getLogger(__name__)

NONFINITE_FILE = "nonfinite_batches.txt"


class NonFiniteLossError(RunError):
    """The loss or the gradient became NaN or infinite: the message gives the step, the rate and the batch."""


class NonFiniteGuard:
    """Watches the loss of each step for values that are not finite, without making the device wait.

    Args:
        run_dir: gets nonfinite_batches.txt with the names of the images of each such batch.
        image_name: from a place in the train split to the image's name.
    """

    def __init__(self, *, run_dir: Path, image_name: Callable[[int], str]) -> None:
        self.path = run_dir / NONFINITE_FILE
        self.image_name = image_name
        self._pending: tuple[torch.Tensor, Batch, int, float] | None = None

    def watch(self, finite: torch.Tensor, batch: Batch, step: int, rate: float) -> None:
        """Look at `finite`, a () bool on the device, when the next step is under way: reading it then costs no stall.

        Raises:
            NonFiniteLossError: the step before this one was not finite.
        """
        self.check()
        self._pending = (finite, batch, step, rate)

    def check(self) -> None:
        """Look at the last step now; waits for the device.

        Raises:
            NonFiniteLossError: it was not finite.
        """
        if self._pending is None:
            return
        finite, batch, step, rate = self._pending
        self._pending = None
        if bool(finite):
            return
        self.report(batch, step, rate)
        raise NonFiniteLossError(
            f"step {step}: the loss is not finite, at learning rate {rate:g}. "
            f"The batch's images are listed in {self.path}.\n"
            "  try a smaller optimizer.lr, scheduler.warmup_epochs=1, trainer.clip_grad_norm=1, "
            "trainer.precision=fp32, trainer.on_nonfinite=rollback or trainer.on_nonfinite=skip"
        )

    def forget(self) -> None:
        """Do not look at the last step any more."""
        self._pending = None

    def report(self, batch: Batch, step: int, rate: float) -> None:
        """Append the names of the batch's images to the list."""
        names = [self.image_name(int(index)) for index in batch.indices]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"step {step}, epoch {batch.epoch + 1}, learning rate {rate:g}\n")
            file.writelines(f"  {name}\n" for name in names)


def whole_run_out_of_memory(current: int, error: torch.OutOfMemoryError) -> RunError:
    """The end of a run whose processes talk in each pass: the others wait within the one that did not come about."""
    return RunError(
        f"out of memory on the device: {error}\n"
        "  with trainer.parallel=fsdp or trainer.sync_batchnorm=true a step cannot be tried again in smaller parts.\n"
        f"  set trainer.grad_accum_steps={2 * current}, a smaller data.batch_size or trainer.precision=bf16"
    )


def double_grad_accum(current: int, batch_size: int, error: torch.OutOfMemoryError) -> int:
    """Twice as many micro-batches, after the device ran out of memory; the effective batch stays the same.

    Raises:
        RunError: a micro-batch is a single image already.
    """
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
