"""Pairs of images that may be copies of each other, without comparing all pairs.

The thumbnails of all images are projected onto the principal components of the set, and the signs make four keys of 16
bits (locality-sensitive hashing; the signs of a set's own components are balanced, so that the images of a uniform set
fall into many buckets, too). An image looks into the buckets of its keys in all eight orientations. Where a projection
is nearest to zero its sign is the first that a copy changes, so it also looks behind the flips of those signs (multi-
probe LSH, Lv et al. 2007). What it finds there counts if most signs are the same and the thumbnails correlate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cvtrain.check.measure import THUMB

# The orientations of a square: mirrored or not, at four turns.
ORIENTATIONS = 8
NUM_KEYS, KEY_BITS = 4, 16
# Signs of each key that are tried both ways.
FLIPPED = 3
# Of no more images than this, all pairs are compared.
ALL_PAIRS = 1024
# Correlation of the thumbnails of a copy, at the least.
MIN_CORRELATION = 0.94
# Grey levels of standard deviation below which a thumbnail shows nothing that could be compared.
MIN_CONTRAST = 2.0
# Signs of 64 in which a copy may differ; two images that share a key by chance differ in 24 of the other 48.
MAX_CHANGED = 18
# Of a fuller bucket only the first images are looked at: so many, or so many times the mean if that is more. In a set
# whose images are all alike, such as frames of a camera that stands still, they stand for the others.
MAX_BUCKET, MAX_TIMES_MEAN = 64, 8
_SAMPLE, _QUERIES, _PAIRS = 4096, 2048, 1 << 20


@dataclass(frozen=True)
class Candidates:
    """Pairs of images that look alike.

    Attributes:
        first, second: (P,) int64, first < second.
        orientations: (P,) int8: `orient(first, o)` looks like second.
        correlations: (P,) float32 of the thumbnails.
    """

    first: np.ndarray
    second: np.ndarray
    orientations: np.ndarray
    correlations: np.ndarray


def orient(images: np.ndarray, orientation: int) -> np.ndarray:
    """Turn or mirror images (N, H, W, ...): 0 is as they are, and the eight are all that a square has.

    Transposed if bit 2 is set, then mirrored left to right by bit 0, and top to bottom by bit 1.
    """
    if orientation & 4:
        images = images.swapaxes(1, 2)
    if orientation & 1:
        images = images[:, :, ::-1]
    return images[:, ::-1] if orientation & 2 else images


def standardize(thumbs: np.ndarray) -> np.ndarray:
    """Return (N, 256) float32 of mean 0 and norm 1; products are correlations. Flat thumbnails become zeros."""
    values = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    flat = norms < MIN_CONTRAST * THUMB
    return np.where(flat, 0, values / np.where(flat, 1, norms)).astype(np.float32)


def find_candidates(thumbs: np.ndarray) -> Candidates:
    """Return the pairs whose thumbnails correlate by at least 0.94 in some orientation, each once, in order.

    Args:
        thumbs: (N, 16, 16) uint8.
    """
    contrasts = np.concatenate(
        [np.zeros(0), *(part.std(axis=(1, 2)) for part in np.array_split(thumbs, len(thumbs) // _SAMPLE + 1))]
    )
    shown = np.flatnonzero(contrasts >= MIN_CONTRAST)
    if not len(shown):
        nothing = np.zeros(0, np.int64)
        return Candidates(nothing, nothing, nothing.astype(np.int8), nothing.astype(np.float32))
    thumbs = thumbs[shown]
    search = _all_pairs if len(thumbs) <= ALL_PAIRS else _near_pairs
    table = np.concatenate(list(search(thumbs)))
    # Of a pair that several buckets or orientations gave, the best; of equal ones the first orientation.
    table = table[np.lexsort((table[:, 3], -table[:, 2], table[:, 1], table[:, 0]))]
    is_first = np.ones(len(table), bool)
    is_first[1:] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    table = table[is_first]
    pairs = shown[table[:, :2].astype(np.int64)]
    return Candidates(pairs[:, 0], pairs[:, 1], table[:, 3].astype(np.int8), table[:, 2].astype(np.float32))


def _all_pairs(thumbs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of `_pairs` for all pairs that correlate."""
    rows = standardize(thumbs)
    for orientation in range(ORIENTATIONS):
        correlations = standardize(orient(thumbs, orientation)) @ rows.T
        query, member = np.nonzero(correlations >= MIN_CORRELATION)
        other = query != member
        query, member = query[other], member[other]
        yield _pairs(query, member, correlations[query, member], orientation)


def _near_pairs(thumbs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of `_pairs` for the pairs that share a bucket and correlate."""
    weights, center = _principal_components(thumbs)
    keys = np.concatenate([_keys(standardize(part) @ weights - center)[0] for part in _blocks(thumbs)])
    tables = [_Table(keys[:, number]) for number in range(NUM_KEYS)]
    # A projection of turned images is that of the images onto components turned back.
    images = weights.T.reshape(-1, THUMB, THUMB)
    turned = [orient(images, inverse(turn)).reshape(len(images), -1).T for turn in range(ORIENTATIONS)]
    first = 0
    for block in _blocks(thumbs):
        rows = standardize(block)
        for orientation in range(ORIENTATIONS):
            queries = orient(block, orientation)
            asking, weakest = _keys(rows @ turned[orientation] - center)
            for query, member in _collisions(asking, weakest, tables, first):
                is_close = _num_changed(asking[query - first], keys[member]) <= MAX_CHANGED
                query, member = query[is_close], member[is_close]
                correlations = _correlations(queries[query - first], thumbs[member])
                yield _pairs(query, member, correlations, orientation)
        first += len(block)


def _pairs(query: np.ndarray, member: np.ndarray, correlations: np.ndarray, orientation: int) -> np.ndarray:
    """(P, 4) rows of first, second, correlation and orientation of the pairs that correlate enough, first < second."""
    alike = correlations >= MIN_CORRELATION
    query, member, correlations = query[alike], member[alike], correlations[alike].round(5)
    # Seen from the other side, a quarter turn goes the other way.
    turns = np.where(query < member, orientation, inverse(orientation))
    return np.stack([np.minimum(query, member), np.maximum(query, member), correlations, turns], axis=1)


def inverse(orientation: int) -> int:
    """Return the orientation that undoes another: those with a transposition swap their mirrors."""
    if orientation & 4:
        return 4 | (orientation & 1) << 1 | (orientation & 2) >> 1
    return orientation


def _blocks(thumbs: np.ndarray) -> Iterator[np.ndarray]:
    return (thumbs[first : first + _QUERIES] for first in range(0, len(thumbs), _QUERIES))


def _principal_components(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (256, 64) weights and the (64,) mean of a sample of thumbnails, projected."""
    rows = np.unique(np.linspace(0, len(thumbs) - 1, min(len(thumbs), _SAMPLE)).astype(np.int64))
    # In all orientations, since a copy may come in any.
    sample = standardize(np.concatenate([orient(thumbs[rows[turn::8]], turn) for turn in range(ORIENTATIONS)]))
    values, vectors = np.linalg.eigh(sample.T @ sample)
    order = np.argsort(values)[::-1][: NUM_KEYS * KEY_BITS]
    weights = (vectors[:, order] / np.sqrt(np.maximum(values[order], 1e-6))).astype(np.float32)
    return weights, np.median(sample @ weights, axis=0)


def _keys(projections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (N, 4) int32 of projections (N, 64), and the bits (N, 4, 3) int32 nearest to a change."""
    values = projections.reshape(len(projections), KEY_BITS, NUM_KEYS).swapaxes(1, 2)
    bits = 1 << np.arange(KEY_BITS, dtype=np.int32)
    keys = ((values > 0) * bits).sum(axis=2, dtype=np.int32)
    weakest = np.argpartition(np.abs(values), FLIPPED, axis=2)[:, :, :FLIPPED]
    return keys, bits[weakest]


class _Table:
    """Images by key.

    Args:
        keys: (N,) int64 below 2 ** 16.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys, kind="stable").astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << KEY_BITS))])

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first place in `order` and the number of the images of each key that are looked at."""
        first = self.starts[keys]
        limit = max(MAX_BUCKET, MAX_TIMES_MEAN * len(self.order) >> KEY_BITS)
        return first, np.minimum(self.starts[keys + 1] - first, limit)


def _collisions(
    keys: np.ndarray, weakest: np.ndarray, tables: list[_Table], first: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (query, member) of the images that share a bucket, from `first` on, some of them several times."""
    # Every subset of the weakest bits: (2 ** 3, 3) of 0 and 1.
    subsets = (np.arange(1 << FLIPPED)[:, None] >> np.arange(FLIPPED)) & 1
    for number, table in enumerate(tables):
        probes = keys[:, number, None] ^ (weakest[:, number] @ subsets.T)  # (N, 8)
        starts, counts = table.look_up(probes.ravel())
        query = np.repeat(np.arange(len(keys)) + first, 1 << FLIPPED)
        ends = np.cumsum(counts)
        last = 0
        while last < len(counts):
            done = ends[last - 1] if last else 0
            until = max(last + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
            part = slice(last, until)
            lengths = counts[part]
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            member = table.order[np.repeat(starts[part], lengths) + within].astype(np.int64)
            asking = np.repeat(query[part], lengths)
            other = member != asking
            yield asking[other], member[other]
            last = until


_ONES = np.unpackbits(np.arange(1 << KEY_BITS, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    axis=1, dtype=np.uint8
)


def _num_changed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(P,) the number of bits in which the keys (P, 4) of each pair differ."""
    return _ONES[left ^ right].sum(axis=1)


def _correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(P,) correlations of the thumbnails of each pair."""
    parts = [
        (standardize(left[first : first + _QUERIES]) * standardize(right[first : first + _QUERIES])).sum(axis=1)
        for first in range(0, len(left), _QUERIES)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])
