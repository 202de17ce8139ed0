"""The order of samples: a pure function of (seed, epoch), the same for any workers, restart and library version."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Keeps the order's random stream apart from others that start from the same seed.
_ORDER_STREAM = 0x0DE2


@dataclass(frozen=True)
class BatchKey:
    """Which images make a batch.

    Attributes:
        epoch: 0-based.
        number: of the batch within its epoch, 0-based.
        indices: (B,) int64, in the order of the batch.
    """

    epoch: int
    number: int
    indices: np.ndarray


class EpochPlan:
    """Cuts the samples of each epoch into batches; the last one may be shorter.

    Args:
        num_samples: N, the size of the source.
        batch_size: images per batch.
        seed: of the order.
        shuffle: a new order in each epoch; otherwise 0..N-1 in each.
        weights: (N,) not negative: each epoch draws as many samples as it would have, with replacement, each with
            the probability weight / sum. Needs shuffle.
        limit_batches: an epoch ends after this many batches. Without shuffle these are spread evenly over the
            source, since neighbours are often of one class.
        subset: (M,) the only samples to use, in this order if not shuffled.
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
    ) -> None:
        assert shuffle or weights is None, "weights only matter to a drawn order"
        assert weights is None or len(weights) == num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._subset = None if subset is None else np.asarray(subset, dtype=np.int64)
        self._pool_size = num_samples if self._subset is None else len(self._subset)
        self._cumulative = None if weights is None else self._accumulate(weights)
        limit = self._pool_size if limit_batches is None else limit_batches * batch_size
        self.num_images = min(self._pool_size, limit)

    @property
    def num_batches(self) -> int:
        """Batches per epoch."""
        return -(-self.num_images // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of all samples of `epoch`, (num_images,) int64, in the order of use."""
        if self._cumulative is not None:
            # The top 53 bits as a fraction in [0, 1), as NumPy's own random() does.
            fractions = (self._random_bits(epoch) >> np.uint64(11)) * 2.0**-53
            rows = np.searchsorted(self._cumulative, fractions * self._cumulative[-1], side="right")
        elif self.shuffle:
            # NumPy keeps raw bits the same in all versions, unlike Generator.permutation. 10 million take 1.7 s.
            rows = np.argsort(self._random_bits(epoch), kind="stable")
        else:
            rows = np.arange(self.num_images) * self._pool_size // max(1, self.num_images)
        rows = rows[: self.num_images]
        return rows if self._subset is None else self._subset[rows]

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[BatchKey]:
        """The batches of `epoch` from number `start_batch` on; those before cost nothing."""
        order = self.order(epoch)
        for number in range(start_batch, self.num_batches):
            yield BatchKey(epoch, number, order[number * self.batch_size : (number + 1) * self.batch_size])

    def _random_bits(self, epoch: int) -> np.ndarray:
        """(M,) uint64, a pure function of (seed, epoch)."""
        sequence = np.random.SeedSequence([_ORDER_STREAM, self.seed, epoch])
        return np.asarray(np.random.PCG64(sequence).random_raw(self._pool_size))

    def _accumulate(self, weights: np.ndarray) -> np.ndarray:
        chosen = np.asarray(weights if self._subset is None else weights[self._subset], dtype=np.float64)
        if not (np.isfinite(chosen).all() and (chosen >= 0).all() and chosen.sum() > 0):
            raise ValueError("sampling weights must be finite, not negative, and not all zero")
        return np.cumsum(chosen)
