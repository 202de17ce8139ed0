"""Copies: the same bytes, the same pixels, or the same picture encoded, resized, turned or mirrored."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cvtrain.check.findings import Finding, class_of
from cvtrain.check.measure import LOOK, CheckedImages, Measurements, shrink
from cvtrain.check.search import find_candidates, orient
from cvtrain.data.images.errors import BadImageError

# Smaller images have too few pixels to tell a copy from a similar picture: only equal ones are found.
MIN_SIDE = 16
# Difference of the colours at 8 x 8 and 16 x 16, over their standard deviation. On CIFAR-10, copies at JPEG quality 50
# or at half the size came to 0.30 and 0.46 at most; the closest pair of different pictures was at 0.54 and 0.53.
MAX_DIFFERENCE = {16: 0.48, 8: 0.35}
# Correlation of the details: the grey values at 32 x 32 less those at 8 x 8. The same copies had 0.897 at least; of
# photos of 100 pixels and more 0.98, while two hands that make the same sign had 0.85 at most.
DETAIL, COARSE = LOOK, 8
MIN_CORRELATION, MIN_CORRELATION_OF_LARGE = 0.88, 0.95
LARGE = 48
# Grey levels of details below which there is nothing to compare.
MIN_DETAIL = 0.5
# Pairs of an image that are looked at closely, those across splits and the most alike first, until so many are copies.
MAX_LOOKS, ENOUGH = 24, 3
_KEPT = 4096
WORDS = {"bytes": "same bytes", "pixels": "same pixels", "near": "near copy"}


@dataclass(frozen=True)
class Copies:
    """Which images are copies of which.

    Attributes:
        roots: (N,) int64, the first image with the same bytes or pixels; itself if there is no other.
        same_bytes: of two images with one root, whether their files are equal.
        near: similarity and orientation by pair of roots, the smaller first.
    """

    roots: np.ndarray
    same_bytes: Callable[[int, int], bool]
    near: dict[tuple[int, int], tuple[float, int]]


def find_copies(images: CheckedImages, measured: Measurements) -> Copies:
    """Find copies among all images that could be read. Pairs that look alike are read again and compared."""
    roots = np.arange(len(images))
    for group in _groups(_fingerprints(measured.digests), np.flatnonzero(measured.digests.any(axis=1))):
        roots[group] = group[0]
    firsts = np.flatnonzero((roots == np.arange(len(images))) & measured.readable)
    shapes = np.stack([measured.heights, measured.widths], axis=1).astype(np.uint64)
    alike = _fingerprints(measured.thumbs.reshape(len(images), -1)) ^ _fingerprints(shapes)
    for group in _groups(alike, firsts):
        equal = [group[0], *(other for other in group[1:] if _same_pixels(images, int(group[0]), int(other)))]
        roots[np.isin(roots, equal)] = group[0]
    large = np.minimum(measured.heights, measured.widths) >= MIN_SIDE
    firsts = np.flatnonzero((roots == np.arange(len(images))) & measured.readable & large)
    near = dict(_verified(images, firsts, measured))
    digests = measured.digests
    return Copies(roots, lambda one, other: bool((digests[one] == digests[other]).all()), near)


def copy_findings(images: CheckedImages, copies: Copies) -> Iterator[Finding]:
    """Yield a finding for each image that has a copy before it, in the order of train, val, test.

    The partner is one of another split if there is one, there rather of the same label, else one with another label,
    else the most alike.
    """
    members: dict[int, list[int]] = {}
    has_copy = np.zeros(len(images), bool)
    has_copy[np.flatnonzero(copies.roots != np.arange(len(images)))] = True
    has_copy[copies.roots[has_copy]] = True
    neighbours: dict[int, list[tuple[int, float, int]]] = {}
    for (one, other), (similarity, orientation) in copies.near.items():
        neighbours.setdefault(one, []).append((other, similarity, orientation))
        neighbours.setdefault(other, []).append((one, similarity, orientation))
    near_roots = np.isin(copies.roots, np.array(list(neighbours), np.int64))
    involved = np.flatnonzero(has_copy | near_roots)
    for index in involved.tolist():
        members.setdefault(int(copies.roots[index]), []).append(index)
    for index in involved.tolist():
        root = int(copies.roots[index])
        partners = [(other, 1.0, 0, True) for other in _leaders(images, members[root], index)]
        for near_root, similarity, orientation in neighbours.get(root, ()):
            partners += [
                (other, similarity, orientation, False) for other in _leaders(images, members[near_root], index)
            ]
        if partners:
            yield _finding(images, copies, index, partners)


def _leaders(images: CheckedImages, group: list[int], index: int) -> list[int]:
    """Of a group, the first image before `index` of each split and label."""
    leaders: dict[tuple[int, int], int] = {}
    for other in group:
        if other < index:
            leaders.setdefault((int(images.split_ids[other]), int(images.labels[other])), other)
    return list(leaders.values())


def _finding(
    images: CheckedImages, copies: Copies, index: int, partners: list[tuple[int, float, int, bool]]
) -> Finding:
    split, label = images.split_ids[index], images.labels[index]

    def rank(partner: tuple[int, float, int, bool]) -> tuple[bool, bool, bool, float, int]:
        other, similarity, _, is_equal = partner
        same_split, same_label = images.split_ids[other] == split, images.labels[other] == label
        # Across splits the copy is the news, within one a copy under another label.
        return bool(same_split), bool(same_label == same_split), not is_equal, -similarity, other

    partner, similarity, orientation, is_equal = min(partners, key=rank)
    kind = ("bytes" if copies.same_bytes(index, partner) else "pixels") if is_equal else "near"
    words = WORDS[kind] + (", turned or mirrored" if orientation else "")
    if images.split_ids[partner] != split:
        check = "leakage"
        words += f", in {images.splits[images.split_ids[partner]]}"
    else:
        check = "copy" if images.labels[partner] == label else "conflict"
    if images.labels[partner] != label:
        words += f", labelled {class_of(images, index)} and {class_of(images, partner)}"
    return Finding(check, words, index, score=similarity, partner=partner)


def _fingerprints(rows: np.ndarray) -> np.ndarray:
    """(N,) uint64: equal for equal rows (N, D), and very seldom for others."""
    weights = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    found = np.zeros(len(rows), np.uint64)
    for column, weight in enumerate(weights):
        found += rows[:, column].astype(np.uint64) * weight  # wraps modulo 2 ** 64
    return found


def _groups(keys: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the `rows` (M,) int64, rising, of each key that several of them have."""
    rows = rows[np.argsort(keys[rows], kind="stable")]
    cuts = np.flatnonzero(keys[rows][1:] != keys[rows][:-1]) + 1
    yield from (group for group in np.split(rows, cuts) if len(group) > 1)


def _same_pixels(images: CheckedImages, one: int, other: int) -> bool:
    try:
        return np.array_equal(images.read(one), images.read(other))
    except BadImageError:  # gone since it was measured
        return False


def _verified(
    images: CheckedImages, rows: np.ndarray, measured: Measurements
) -> Iterable[tuple[tuple[int, int], tuple[float, int]]]:
    """Yield the pairs of `rows` that look alike in small and are alike at a closer look."""
    candidates = find_candidates(measured.thumbs[rows])

    @functools.lru_cache(maxsize=_KEPT)
    def look(index: int) -> Look | None:
        side = int(min(measured.heights[index], measured.widths[index]))
        if measured.looks is not None and side >= DETAIL:
            return look_at(measured.looks[index], side)
        try:
            return look_at(images.read(index), side)
        except BadImageError:  # gone since it was measured
            return None

    firsts, seconds = rows[candidates.first], rows[candidates.second]
    same_split = images.split_ids[firsts] == images.split_ids[seconds]
    order = np.lexsort((-candidates.correlations, same_split, seconds))
    looks: Counter[int] = Counter()
    found: Counter[int] = Counter()
    for place in order.tolist():
        first, second = int(firsts[place]), int(seconds[place])
        if looks[second] == MAX_LOOKS or found[second] == ENOUGH:
            continue
        looks[second] += 1
        one, other = look(first), look(second)
        if one is not None and other is not None:
            orientation = int(candidates.orientations[place])
            similarity = compare(one, other, orientation)
            if similarity is not None:
                found[second] += 1
                yield (first, second), (similarity, orientation)


@dataclass(frozen=True)
class Look:
    """What is compared of an image.

    Attributes:
        colours: (S, S, C) float32 by size, 16 and 8.
        contrasts: standard deviation of these colours, by size.
        grey: (S, S) float32, S = 32, or the shorter side of a smaller image.
        side: shorter side of the image in pixels.
    """

    colours: dict[int, np.ndarray]
    contrasts: dict[int, float]
    grey: np.ndarray
    side: int


def look_at(pixels: np.ndarray, side: int) -> Look:
    """Return what is compared of an image.

    Args:
        pixels: (H, W, C) uint8, at least 16 x 16; it may be shrunk.
        side: shorter side of the image as it was.
    """
    size = min(DETAIL, *pixels.shape[:2])
    small = shrink(pixels, size).reshape(size, size, -1)
    colours = {each: shrink(small, each).reshape(each, each, -1).astype(np.float32) for each in MAX_DIFFERENCE}
    contrasts = {each: float((values - values.mean(axis=(0, 1))).std()) for each, values in colours.items()}
    return Look(colours, contrasts, small.mean(axis=2, dtype=np.float32), side)


def compare(one: Look, other: Look, orientation: int = 0) -> float | None:
    """Return the correlation of the details of two images if they are copies; None: they are not.

    Args:
        orientation: as `orient` turns `one` before it is compared.
    """
    for size, limit in MAX_DIFFERENCE.items():
        difference = orient(one.colours[size][None], orientation)[0] - other.colours[size]
        contrast = max(one.contrasts[size], other.contrasts[size], 1.0)
        if float(np.square(difference).mean()) > (limit * contrast) ** 2:
            return None
    size = min(len(one.grey), len(other.grey))
    left, right = _details(orient(one.grey[None], orientation)[0], size), _details(other.grey, size)
    if min(left.std(), right.std()) < MIN_DETAIL:
        return None
    correlation = float(np.corrcoef(left, right)[0, 1])
    is_large = min(one.side, other.side) >= LARGE
    return correlation if correlation >= (MIN_CORRELATION_OF_LARGE if is_large else MIN_CORRELATION) else None


def _details(grey: np.ndarray, size: int) -> np.ndarray:
    """(size * size,) float32: grey values less the coarse picture."""
    import cv2

    grey = cv2.resize(np.ascontiguousarray(grey), (size, size), interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(grey, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    return (grey - cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)).ravel()
