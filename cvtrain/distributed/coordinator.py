"""What the processes of a run have to see alike at each step: a signal, the time, a failure, the size of the batch."""

import signal
from collections.abc import Iterator
from typing import Protocol, TypeVar

from cvtrain.config.errors import RunError
from cvtrain.distributed.errors import PeerFailedError
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.runtime.clock import now
from cvtrain.runtime.signals import SIGNALS, StopSignals


class Sized(Protocol):
    def __len__(self) -> int: ...


B = TypeVar("B", bound=Sized)


class Coordinator:
    """Of a process that is alone: what it knows itself. `DistributedCoordinator` is the same for several."""

    def __init__(self, stop_signals: StopSignals) -> None:
        self.stop_signals = stop_signals

    @property
    def received(self) -> signal.Signals | None:
        """The signal that ends the run."""
        return self.stop_signals.received

    @property
    def exit_code(self) -> int:
        """That of the run, as far as signals are concerned; see `StopSignals.exit_code`."""
        return self.stop_signals.exit_code

    def all_ranks_failed(self, error: RunError) -> bool:
        """Whether all processes are here because of `error`, so that they can still save together."""
        return True

    def now(self) -> float:
        """Seconds on a clock that only moves forward."""
        return now()

    def exchange(self, num_images: int = 0) -> int:
        """Once per batch, by all: tell the others what this process knows. Gives the sum of `num_images`."""
        return num_images

    def follow(self, batches: Iterator[B]) -> Iterator[B]:
        """The batches. If they fail here, the others learn of it in their next `exchange`."""
        return batches


class DistributedCoordinator(Coordinator):
    """One sum of a few numbers per batch, over the host: while a GPU works on the batch before, it costs no time.

    A signal counts once all know of it: all stop after the same step, whoever got it. The time is rank 0's, so that
    all find the same limits reached.
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
        """Rank 0's time at the last exchange."""
        return self._now

    def exchange(self, num_images: int = 0) -> int:
        """As for one process.

        Raises:
            PeerFailedError: the batches of another process have failed.
            LostProcessError: another process has ended.
        """
        return self._exchange(num_images, failed=False)

    def follow(self, batches: Iterator[B]) -> Iterator[B]:
        try:
            yield from batches
        except PeerFailedError:
            raise
        except RunError:
            self._exchange(0, failed=True)
            raise

    def _exchange(self, num_images: int, *, failed: bool) -> int:
        own = self.stop_signals.received
        signals = [float(number == own) for number in SIGNALS]
        time = now() if self._world.is_main_process else 0.0
        total, num_failed, self._now, *votes = self._world.all_reduce_scalars([num_images, failed, time, *signals])
        for number, vote in zip(SIGNALS, votes, strict=True):
            if vote and self._received is None:
                self._received = self.stop_signals.received = number
        self._has_failed = bool(num_failed)
        if num_failed and not failed:
            raise PeerFailedError("another process of this run has failed")
        return int(total)


def build_coordinator(stop_signals: StopSignals, world: ProcessGroup) -> Coordinator:
    return Coordinator(stop_signals) if world.world_size == 1 else DistributedCoordinator(stop_signals, world)
