"""`AutoWorkers`: how many processes make the batches of a loader, decided by what the first ones take.

Batches are equal for any number of workers, so the number may change between two of them.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum

from cvtrain.data.loader.batch import Batch

log = logging.getLogger(__name__)

# Batches that a decision looks at; fewer if they take long.
NUM_MEASURED = 4
LONG_SECONDS = 3.0
# Without workers a run is this much slower at most: not worth their memory, and what they take from the step.
SMALL_SHARE = 0.05
# About what starting workers takes from a run: forks, and memory that is shared with them and copied where it changes.
TRIAL_SECONDS = 1.0
# Workers have to save this much of the time to stay.
WORTHWHILE = 0.03
# Making a batch takes this much more or less than when it was decided, as when a cache is complete: decide anew.
CHANGED = 3.0


class Phase(Enum):
    alone = "making batches in the main process, to see what they take"
    trial = "with workers, to see whether they help"
    settled = "decided"


@dataclass
class Tally:
    """Batches, the seconds from one to the next, and the seconds that making them took, wherever it was done."""

    num_batches: int = 0
    seconds: float = 0.0
    made_seconds: float = 0.0

    def add(self, seconds: float, made_seconds: float) -> None:
        self.num_batches += 1
        self.seconds += seconds
        self.made_seconds += made_seconds

    @property
    def per_batch(self) -> float:
        return self.seconds / max(1, self.num_batches)

    @property
    def made_per_batch(self) -> float:
        return self.made_seconds / max(1, self.num_batches)


class AutoWorkers:
    """Chooses between no worker and as many as the work asks for, by measuring both in the run itself.

    The first batches are made in the main process. If that takes a small share of the time, it stays so. Otherwise
    workers are started as soon as batches have taken as long as starting workers does, so that little is lost however
    soon the run may end; they stay if a batch then comes sooner. So workers are never slower than none, but for the
    first seconds. When making a batch costs much less or more than it did, say because the cache is complete, the
    next epoch begins with another look.

    Args:
        most: workers at most, at least 1.
        purpose: of the batches, for the log, such as "training".
        clock: seconds.

    Attributes:
        current: workers that the next batch should come from.
    """

    def __init__(self, most: int, *, purpose: str, clock: Callable[[], float] = time.perf_counter) -> None:
        assert most >= 1
        self.most = most
        self.purpose = purpose
        self.current = 0
        self._clock = clock
        self._phase = Phase.alone
        self._num_to_skip = 1  # the first step allocates, compiles and loads libraries
        self._tally = Tally()
        self._alone = Tally()
        self._made_when_decided = 0.0

    def begin_epoch(self) -> None:
        """To be called before the first batch of each epoch."""
        if self._phase is not Phase.settled or not self._tally.num_batches:
            return
        before, now = self._made_when_decided, self._tally.made_per_batch
        self._tally = Tally()
        if now > CHANGED * before or before > CHANGED * now:
            self._phase, self.current = Phase.alone, 0

    def timed(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Pass on `batches`, which `current` workers make, and take the time; ends where `current` changes."""
        workers = self.current
        asked = self._clock()
        for batch in batches:
            received = self._clock()
            yield batch
            now = self._clock()
            self._count(waited=received - asked, seconds=now - asked, made=sum(batch.seconds.values()))
            if self.current != workers:
                return
            asked = now

    def _count(self, *, waited: float, seconds: float, made: float) -> None:
        if self._num_to_skip > 0 and not (self._phase is Phase.alone and waited > LONG_SECONDS):
            self._num_to_skip -= 1
            return
        self._tally.add(seconds, waited if self.current == 0 else made)
        is_long = self._tally.seconds > LONG_SECONDS
        if self._phase is Phase.alone and (is_long or self._tally.num_batches >= NUM_MEASURED):
            self._decide_alone()
        elif self._phase is Phase.trial and self._tally.num_batches >= max(NUM_MEASURED, 2 * self.current):
            self._decide_trial()

    def _decide_alone(self) -> None:
        self._alone = self._tally
        made, step = self._alone.made_per_batch, self._alone.per_batch - self._alone.made_per_batch
        if made < SMALL_SHARE * self._alone.per_batch:
            self._settle(0, f"a batch is made in {_text(made)}, beside {_text(step)} that it is used for")
            return
        if self._alone.made_seconds < TRIAL_SECONDS:
            return
        self._tally = Tally()
        # A quarter more than would keep up, since images differ; all where the device computes in the background.
        enough = math.ceil(1.25 * made / step) if step > 0 else self.most
        self._phase, self.current = Phase.trial, min(self.most, enough)
        self._num_to_skip = self.current  # those that they made while they started

    def _decide_trial(self) -> None:
        alone, shared = self._alone.per_batch, self._tally.per_batch
        comparison = f"a batch comes every {_text(shared)}, without workers every {_text(alone)}"
        helps = shared < (1 - WORTHWHILE) * alone
        self._settle(self.current if helps else 0, comparison if helps else f"with {self.current}, {comparison}")

    def _settle(self, workers: int, reason: str) -> None:
        self._phase, self.current, self._tally = Phase.settled, workers, Tally()
        self._made_when_decided = self._alone.made_per_batch
        log.info("data workers for %s: %s: %s", self.purpose, workers or "none", reason)


def _text(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
