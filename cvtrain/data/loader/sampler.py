"""The order of samples: a pure function of (seed, epoch), the same for any workers, restart and library version."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Keeps the order's random stream apart from others that start from the same seed.
_ORDER_STREAM = 0x0DE2


@dataclass(frozen=True)
class BatchIndices:
    """The images of a batch, or of this rank's share of it.

    Attributes:
        epoch: 0-based.
        number: of the batch within its epoch, 0-based.
        indices: (B,) int64, in the order of the batch.
    """

    epoch: int
    number: int
    indices: np.ndarray


class EpochSampler:
    """Cuts the samples of each epoch into batches, and those into one share per rank; the last batch may be shorter.

    The shares of a batch are neighbours whose sizes differ by one at most, so that each sample belongs to one rank.

    Args:
        num_samples: N, the size of the source.
        batch_size: images per batch, over all ranks.
        seed: of the order.
        shuffle: a new order in each epoch; otherwise 0..N-1 in each.
        weights: (N,) not negative: each epoch samples with replacement, with the probability weight / sum, as many
            images as it would have without. Needs shuffle.
        limit_batches: an epoch ends after this many batches. Without shuffle these are spread evenly over the
            source, since neighbours are often of one class.
        subset: (M,) the only samples to use, in this order if not shuffled.
        rank, world_size: which rank's shares `batches` gives, of how many.
        min_share: images that each rank needs of a batch, for training: a last batch that gives some rank fewer is left
            out of the epoch. Where a full batch gives fewer, one is enough. 0: nothing is left out, for evaluation.

    Attributes:
        num_images: images per epoch.
        num_left_out: images of a last batch that is too small, which is left out.
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
        min_share: int = 0,
    ) -> None:
        assert shuffle or weights is None, "weights need shuffle"
        assert weights is None or len(weights) == num_samples
        assert 0 <= rank < world_size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.min_share = min(min_share, 1 if batch_size < min_share * world_size else min_share)
        self._subset = None if subset is None else np.asarray(subset, dtype=np.int64)
        self._pool_size = num_samples if self._subset is None else len(self._subset)
        self._cumulative = None if weights is None else self._accumulate(weights)
        limit = self._pool_size if limit_batches is None else limit_batches * batch_size
        self.num_images = min(self._pool_size, limit)
        last = self.num_images % batch_size
        self.num_left_out = last if last < self.min_share * world_size else 0
        self.num_images -= self.num_left_out

    @property
    def num_batches(self) -> int:
        """Batches per epoch; in training each is one optimizer step."""
        return -(-self.num_images // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of all samples of `epoch`, (num_images,) int64, in the order of use."""
        return self._part(self._rows(epoch), epoch, 0, self.num_images)

    def batches(self, epoch: int, start_batch: int = 0) -> Iterator[BatchIndices]:
        """Yield this rank's shares of the batches of `epoch` from `start_batch` on; earlier ones cost nothing."""
        rows = self._rows(epoch)
        for number in range(start_batch, self.num_batches):
            yield BatchIndices(epoch, number, self._part(rows, epoch, *self._share(number)))

    def _share(self, number: int) -> tuple[int, int]:
        """Return where this rank's share of a batch begins and ends in the order of the epoch."""
        first = number * self.batch_size
        each, more = divmod(min(self.batch_size, self.num_images - first), self.world_size)
        start = first + self.rank * each + min(self.rank, more)
        return start, start + each + (self.rank < more)

    def _rows(self, epoch: int) -> np.ndarray | None:
        """Return the places in the pool by place in a shuffled epoch; None where they are computed as needed."""
        if self._cumulative is not None or not self.shuffle:
            return None
        # NumPy keeps raw bits the same in all versions, unlike Generator.permutation. 10 million take 3 s.
        return np.argsort(self._random_bits(epoch, 0, self._pool_size), kind="stable")

    def _part(self, rows: np.ndarray | None, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return the indices of the samples at places `start` to `stop` of the epoch, (stop - start,) int64."""
        if rows is not None:
            chosen = rows[start:stop]
        elif self._cumulative is not None:
            # The top 53 bits as a fraction in [0, 1), as NumPy's own random() does.
            fractions = (self._random_bits(epoch, start, stop) >> np.uint64(11)) * 2.0**-53
            chosen = np.searchsorted(self._cumulative, fractions * self._cumulative[-1], side="right")
        else:
            chosen = np.arange(start, stop) * self._pool_size // max(1, self.num_images + self.num_left_out)
        return chosen if self._subset is None else self._subset[chosen]

    def _random_bits(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return numbers `start` to `stop` of a stream of uint64 that is a pure function of (seed, epoch)."""
        generator = np.random.PCG64(np.random.SeedSequence([_ORDER_STREAM, self.seed, epoch]))
        if start:
            generator.advance(start)
        return np.asarray(generator.random_raw(stop - start))

    def _accumulate(self, weights: np.ndarray) -> np.ndarray:
        chosen = np.asarray(weights if self._subset is None else weights[self._subset], dtype=np.float64)
        if not (np.isfinite(chosen).all() and (chosen >= 0).all() and chosen.sum() > 0):
            raise ValueError("sampling weights must be finite, not negative, and not all zero")
        return np.cumsum(chosen)
