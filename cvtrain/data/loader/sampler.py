"""The order of samples: a pure function of (seed, epoch), the same for any workers, restart and library version."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cvtrain.data.loader.permutation import FeistelPermutation

# Keeps the order's random stream apart from others that start from the same seed.
_ORDER_STREAM = 0x0DE2
# Up to here the order is a sort of random numbers: 10 million take 1.7 s. Beyond, a process computes its share alone.
MAX_SORTED = 1 << 22
# Samples that are computed at a time beyond that.
_BLOCK = 1 << 14


@dataclass(frozen=True)
class BatchIndices:
    """Which images make a batch, or this process's share of it.

    Attributes:
        epoch: 0-based.
        number: of the batch within its epoch, 0-based.
        indices: (B,) int64, in the order of the batch.
    """

    epoch: int
    number: int
    indices: np.ndarray


class EpochSampler:
    """Cuts the samples of each epoch into batches, and those into shares; the last batch may be shorter.

    With several processes, a batch is cut into neighbouring shares whose sizes differ by one at most, so that each
    sample belongs to one process. Where a full batch leaves each process two images or more, so does a short one, and
    the processes that this leaves without get none: batch statistics of a single image mean nothing.

    Args:
        num_samples: N, the size of the source.
        batch_size: images per batch, over all processes.
        seed: of the order.
        shuffle: a new order in each epoch; otherwise 0..N-1 in each.
        weights: (N,) not negative: each epoch draws as many samples as it would have, with replacement, each with
            the probability weight / sum. Needs shuffle.
        limit_batches: an epoch ends after this many batches. Without shuffle these are spread evenly over the
            source, since neighbours are often of one class.
        subset: (M,) the only samples to use, in this order if not shuffled.
        rank, world_size: which process's shares `batches` gives, of how many.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        weights: np.ndarray | None = None,
        *,
        limit_batches: int | None = None,
        subset: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert shuffle or weights is None, "weights only matter to a drawn order"
        assert weights is None or len(weights) == num_samples
        assert 0 <= rank < world_size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self._subset = None if subset is None else np.asarray(subset, dtype=np.int64)
        self._pool_size = num_samples if self._subset is None else len(self._subset)
        self._cumulative = None if weights is None else self._accumulate(weights)
        limit = self._pool_size if limit_batches is None else limit_batches * batch_size
        self.num_images = min(self._pool_size, limit)

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return -(-self.num_images // self.batch_size)

    @property
    def smallest_share(self) -> int:
        """Images that a process gets of a full batch, at least."""
        return self.batch_size // self.world_size

    def order(self, epoch: int) -> np.ndarray:
        """Indices of all samples of `epoch`, (num_images,) int64, in the order of use."""
        return self._part(self._rows(epoch), epoch, 0, self.num_images)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[BatchIndices]:
        """This process's shares of the batches of `epoch` from number `start_batch` on; those before cost nothing."""
        rows = self._rows(epoch)
        # Several batches at a time where an order is computed: a call costs as much as some hundred numbers.
        step = max(1, _BLOCK // max(1, self.smallest_share)) if isinstance(rows, FeistelPermutation) else 1
        for first in range(start_batch, self.num_batches, step):
            shares = [self._share(number) for number in range(first, min(first + step, self.num_batches))]
            for number, indices in enumerate(self._parts(rows, epoch, shares), start=first):
                yield BatchIndices(epoch, number, indices)

    def _share(self, number: int) -> tuple[int, int]:
        """Where this process's share of a batch begins and ends in the order of the epoch."""
        first = number * self.batch_size
        size = min(self.batch_size, self.num_images - first)
        # No more processes than can have two images each, unless a full batch has fewer for them anyway.
        active = self.world_size if self.smallest_share < 2 else max(1, min(self.world_size, size // 2))
        each, more = divmod(size, active)
        rank = min(self.rank, active)
        start = first + rank * each + min(rank, more)
        return start, start + (each + (rank < more) if rank < active else 0)

    def _rows(self, epoch: int) -> "np.ndarray | FeistelPermutation | None":
        """Places in the pool by place in a shuffled epoch; None where these are computed as they are needed."""
        if self._cumulative is not None or not self.shuffle:
            return None
        if self._pool_size > MAX_SORTED:
            return FeistelPermutation(self._pool_size, self._random_bits(epoch, 0, FeistelPermutation.num_keys))
        # NumPy keeps raw bits the same in all versions, unlike Generator.permutation.
        return stable_argsort(self._random_bits(epoch, 0, self._pool_size))

    def _parts(
        self, rows: "np.ndarray | FeistelPermutation | None", epoch: int, spans: list[tuple[int, int]]
    ) -> list[np.ndarray]:
        """`_part` of each (start, stop)."""
        if len(spans) == 1 or not isinstance(rows, FeistelPermutation):
            return [self._part(rows, epoch, start, stop) for start, stop in spans]
        chosen = rows.take(np.concatenate([np.arange(start, stop, dtype=np.uint64) for start, stop in spans]))
        chosen = chosen if self._subset is None else self._subset[chosen]
        return np.split(chosen, np.cumsum([stop - start for start, stop in spans])[:-1])

    def _part(self, rows: "np.ndarray | FeistelPermutation | None", epoch: int, start: int, stop: int) -> np.ndarray:
        """Indices of the samples at places `start` to `stop` of the epoch, (stop - start,) int64."""
        if rows is not None:
            chosen = rows[start:stop]
        elif self._cumulative is not None:
            # The top 53 bits as a fraction in [0, 1), as NumPy's own random() does.
            fractions = (self._random_bits(epoch, start, stop) >> np.uint64(11)) * 2.0**-53
            chosen = np.searchsorted(self._cumulative, fractions * self._cumulative[-1], side="right")
        else:
            chosen = np.arange(start, stop) * self._pool_size // max(1, self.num_images)
        return chosen if self._subset is None else self._subset[chosen]

    def _random_bits(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Numbers `start` to `stop` of a stream of uint64 that is a pure function of (seed, epoch)."""
        generator = np.random.PCG64(np.random.SeedSequence([_ORDER_STREAM, self.seed, epoch]))
        if start:
            generator.advance(start)
        return np.asarray(generator.random_raw(stop - start))

    def _accumulate(self, weights: np.ndarray) -> np.ndarray:
        chosen = np.asarray(weights if self._subset is None else weights[self._subset], dtype=np.float64)
        if not (np.isfinite(chosen).all() and (chosen >= 0).all() and chosen.sum() > 0):
            raise ValueError("sampling weights must be finite, not negative, and not all zero")
        return np.cumsum(chosen)


def stable_argsort(keys: np.ndarray) -> np.ndarray:
    """As `np.argsort(keys, kind="stable")`, 2 to 5 times as fast where no two of `keys` (N,) are equal.

    NumPy's default sort uses the processor's vectors; which of two equal keys it puts first differs by processor.
    """
    order = np.argsort(keys)
    ordered = keys[order]
    return np.argsort(keys, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
