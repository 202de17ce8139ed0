"""Groups of images that belong together, such as the frames of one video: never on both sides of a split."""

import re

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.data.sources.path_table import PathTable, canonical, printable

_KEY = "data.group_regex"


def groups_by_path(paths: PathTable, pattern: str) -> tuple[np.ndarray, list[str]]:
    """Return the group of each path, (N,) int64, and the names of the groups.

    The name is what the first parenthesis of `pattern` matches, or the whole match without one, anywhere in the path.

    Raises:
        ConfigError: a path does not match.
    """
    expression = re.compile(pattern)
    ids: dict[str, int] = {}
    groups = np.empty(len(paths), np.int64)
    for row, path in enumerate(paths):
        match = expression.search(canonical(path))
        name = None if match is None else match.group(min(1, expression.groups))
        if name is None:
            rule = f"does not match {printable(path)}, so it is not known what that image belongs to"
            raise ConfigError(_KEY, pattern, rule, "a group in parentheses names it, such as 'video_([0-9]+)'")
        groups[row] = ids.setdefault(name, len(ids))
    return groups, list(ids)


def grouped_split(
    labels: np.ndarray, groups: np.ndarray, hashes: np.ndarray, val_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and of val, both rising, with every group on one side.

    The groups come in the order of their hashes. One goes to val if that brings the classes' shares nearer to
    `val_fraction`, all classes weighing the same, and leaves each class in train. So the split does not depend on the
    order of the images, and images that are added move few groups.

    Args:
        labels: (N,) int64 class ids.
        groups: (N,) int64 below G.
        hashes: (G,) uint64 of the groups' names.

    Returns:
        (N_train,) and (N_val,) int64; val is empty if no group can leave train.
    """
    totals = np.bincount(labels).astype(np.float64)
    targets, taken = val_fraction * totals, np.zeros(len(totals))
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    in_val = np.zeros(len(labels), bool)
    for group in np.argsort(hashes, kind="stable"):
        present, counts = np.unique(labels[members[group]], return_counts=True)
        after = taken[present] + counts
        before_gap, after_gap = np.abs(taken[present] - targets[present]), np.abs(after - targets[present])
        is_nearer = ((after_gap - before_gap) / totals[present]).sum() < 0
        if is_nearer and (after < totals[present]).all():
            taken[present] = after
            in_val[members[group]] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)
