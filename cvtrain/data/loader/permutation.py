"""A permutation of many numbers, any slice of which can be had without the rest."""

import numpy as np

# Luby and Rackoff 1988 need four; format-preserving ciphers take 8 to 10.
_NUM_ROUNDS = 8
_CHUNK = 1 << 16
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class FeistelPermutation:
    """A pseudorandom permutation of 0..size-1, in memory that does not depend on size.

    A Feistel network over the smallest even number of bits that holds `size` numbers, whose round function is the
    finalizer of SplitMix64 (Steele, Lea and Flood 2014) with a key per round. A result beyond the range is put in again
    until it falls within it (cycle walking, Black and Rogaway 2002): on average no more than four times.

    Only 64-bit arithmetic without sign: the same on every machine and for every version of NumPy.

    Args:
        size: N, from 1 to 2^62.
        keys: what the permutation depends on: any whole numbers, such as raw bits of a generator, one per round.
    """

    num_keys = _NUM_ROUNDS

    def __init__(self, size: int, keys: np.ndarray) -> None:
        assert 1 <= size <= 1 << 62 and len(keys) == _NUM_ROUNDS
        self.size = size
        self._half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.asarray(keys, dtype=np.uint64)

    def __getitem__(self, span: slice) -> np.ndarray:
        """The numbers at places `span`, int64. Step 1 only."""
        start, stop, step = span.indices(self.size)
        assert step == 1
        out = np.empty(max(0, stop - start), dtype=np.int64)
        # In pieces that stay in the processor's cache.
        for first in range(0, len(out), _CHUNK):
            last = min(first + _CHUNK, len(out))
            out[first:last] = self.take(np.arange(start + first, start + last, dtype=np.uint64))
        return out

    def take(self, places: np.ndarray) -> np.ndarray:
        """The numbers at `places`, any shape, int64."""
        values = self._encrypt(places.astype(np.uint64).ravel())
        size = np.uint64(self.size)
        outside = np.flatnonzero(values >= size)
        while len(outside):
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= size]
        return values.astype(np.int64).reshape(places.shape)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            mixed = right + key  # wraps around, as all of this does
            mixed ^= mixed >> np.uint64(30)
            mixed *= np.uint64(_MULTIPLIERS[0])
            mixed ^= mixed >> np.uint64(27)
            mixed *= np.uint64(_MULTIPLIERS[1])
            mixed ^= mixed >> np.uint64(31)
            mixed &= self._mask
            mixed ^= left
            left, right = right, mixed
        return (left << self._half) | right
