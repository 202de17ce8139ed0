"""Folds of cross-validation: k parts of the images, each of which is val once."""

import numpy as np

ALWAYS_TRAIN = -1


def stratified_folds(labels: np.ndarray, hashes: np.ndarray, num_folds: int) -> np.ndarray:
    """Return (N,) int64: the fold of each image below `num_folds`; -1 for the only image of a class.

    The images of a class, n of them in the order of their hashes, are cut at `round(i * n / num_folds)` (halves up). So
    the folds of a class differ by at most one image, and an image that is added moves at most one over each cut.

    Args:
        labels: (N,) int64 class ids.
        hashes: (N,) uint64.
        num_folds: at least 2.
    """
    order = np.lexsort((hashes, labels))  # by class, then by hash
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # rank of each within its class
    cuts = (2 * np.arange(1, num_folds)[:, None] * counts + num_folds) // (2 * num_folds)  # (num_folds - 1, K)
    folds = np.empty(len(labels), np.int64)
    folds[order] = (place >= np.repeat(cuts, counts, axis=1)).sum(axis=0)
    return np.where(counts[labels] == 1, ALWAYS_TRAIN, folds)


def grouped_folds(labels: np.ndarray, groups: np.ndarray, hashes: np.ndarray, num_folds: int) -> np.ndarray:
    """Return (N,) int64: the fold of each image below `num_folds`, one for all images of a group; -1 for none.

    The groups come in the order of their hashes, and so does where each looks first. It goes to the first fold that has
    room for half of it, which a few more images elsewhere do not change; else to the one where it brings the classes'
    shares nearest to 1 / `num_folds`, all classes weighing the same. No fold gets all groups of a class, which train
    would then lack; a group that would do that anywhere, such as the only one of its class, is in no fold.

    Args:
        labels: (N,) int64 class ids.
        groups: (N,) int64 below G.
        hashes: (G,) uint64 of the groups' names.
        num_folds: at least 2.
    """
    totals = np.bincount(labels).astype(np.float64)
    taken = np.zeros((num_folds, len(totals)))
    folds = np.full(len(labels), ALWAYS_TRAIN)
    for group, members in members_by_hash(groups, hashes):
        present, counts = np.unique(labels[members], return_counts=True)
        own_order = (np.arange(num_folds) + int(hashes[group] % np.uint64(num_folds))) % num_folds
        before = taken[np.ix_(own_order, present)]
        after, target = before + counts, totals[present] / num_folds
        gaps = ((np.abs(after - target) - np.abs(before - target)) / totals[present]).sum(axis=1)
        gaps[(after == totals[present]).any(axis=1)] = np.inf
        has_room = gaps <= -0.5 * (counts / totals[present]).sum()
        place = int(np.argmax(has_room) if has_room.any() else np.argmin(gaps))
        if np.isfinite(gaps[place]):
            taken[own_order[place], present] += counts
            folds[members] = own_order[place]
    return folds


def members_by_hash(groups: np.ndarray, hashes: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return each group that has images, and its rows, in the order of the groups' hashes.

    Args:
        groups: (N,) int64 below G.
        hashes: (G,) uint64.
    """
    sizes = np.bincount(groups, minlength=len(hashes))
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    return [(group, members[group]) for group in np.argsort(hashes, kind="stable").tolist() if sizes[group]]
