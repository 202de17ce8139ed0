"""`Coordinator`: before each step the ranks agree on signals, the time, failures and the images of the batch."""

import signal
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from cvtrain.config.errors import RunError
from cvtrain.distributed.errors import PeerFailedError
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.runtime.signals import SIGNALS, StopSignals

B = TypeVar("B")


class ImageCount(NamedTuple):
    """Images of a batch: of all ranks together, and of the rank that has fewest."""

    total: int
    smallest: int


class Coordinator:
    """Coordination of a single process. `DistributedCoordinator` is the same for several."""

    def __init__(self, stop_signals: StopSignals) -> None:
        self.stop_signals = stop_signals

    @property
    def received(self) -> signal.Signals | None:
        """The signal that ends the run."""
        return self.stop_signals.received

    @property
    def exit_code(self) -> int:
        """Exit code of the run after a signal; see `StopSignals.exit_code`."""
        return self.stop_signals.exit_code

    def all_ranks_failed(self, error: RunError) -> bool:
        """Return True if all ranks end because of `error`, so that they can still save together."""
        return True

    def now(self) -> float:
        """Return seconds on a clock that only moves forward."""
        return time.perf_counter()

    def sync(self, num_images: int = 0) -> ImageCount:
        """Agree once per batch; all ranks call it. Returns the images that they have."""
        return ImageCount(num_images, num_images)

    def report_failures(self, batches: Iterator[B]) -> Iterator[B]:
        """Yield the batches. If making one fails here, `sync` raises in the other ranks."""
        return batches


class DistributedCoordinator(Coordinator):
    """One gather of a few numbers per batch, over the host: while a GPU works on the batch before, it costs no time.

    A signal counts once all ranks know of it: all stop after the same step, whoever received it. The time is rank 0's,
    so that all find the same limits reached.
    """

    def __init__(self, stop_signals: StopSignals, world: ProcessGroup) -> None:
        super().__init__(stop_signals)
        self._world = world
        self._received: signal.Signals | None = None
        self._now = 0.0
        self._has_failed = False

    @property
    def received(self) -> signal.Signals | None:
        return self._received

    @property
    def exit_code(self) -> int:
        return 0 if self._received is None else 128 + self._received.value

    def all_ranks_failed(self, error: RunError) -> bool:
        return self._has_failed

    def now(self) -> float:
        """Return rank 0's time at the last `sync`."""
        return self._now

    def sync(self, num_images: int = 0) -> ImageCount:
        """Agree once per batch, as with one process.

        Raises:
            PeerFailedError: the batches of another rank have failed.
            LostProcessError: another rank has ended.
        """
        return self._sync(num_images, failed=False)

    def report_failures(self, batches: Iterator[B]) -> Iterator[B]:
        try:
            yield from batches
        except PeerFailedError:
            raise
        except RunError:
            self._sync(0, failed=True)
            raise

    def _sync(self, num_images: int, *, failed: bool) -> ImageCount:
        own = self.stop_signals.received
        signals = [float(number == own) for number in SIGNALS]
        by_rank = self._world.all_gather_scalars([num_images, failed, time.perf_counter(), *signals])
        images, failures, times, *votes = zip(*by_rank, strict=True)
        self._now = times[0]
        for number, vote in zip(SIGNALS, votes, strict=True):
            if any(vote) and self._received is None:
                self._received = self.stop_signals.received = number
        self._has_failed = any(failures)
        if self._has_failed and not failed:
            raise PeerFailedError("another process of this run has failed")
        return ImageCount(int(sum(images)), int(min(images)))


def build_coordinator(stop_signals: StopSignals, world: ProcessGroup) -> Coordinator:
    """Return `Coordinator`, or for several ranks `DistributedCoordinator`."""
    return Coordinator(stop_signals) if world.world_size == 1 else DistributedCoordinator(stop_signals, world)
