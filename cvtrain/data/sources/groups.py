"""Groups of images that belong together, such as the frames of one video: never on both sides of a split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import display_list
from cvtrain.data.sources.folds import members_by_hash
from cvtrain.data.sources.path_table import PathTable, canonical, printable
from cvtrain.data.sources.source import FileSource, SplittableSource

REGEX, COLUMN = "data.group_regex", "data.group_column"


@dataclass(frozen=True)
class Groups:
    """The group of each image.

    Attributes:
        key: the setting that names them, for errors.
        value: its value.
        ids: by split, (N,) int64 positions in `names`.
        names: of the groups.
    """

    key: str
    value: str
    ids: Mapping[str, np.ndarray]
    names: list[str]

    def hashes(self, seed: int) -> np.ndarray:
        """(G,) uint64 of the names, which decide the order in which groups are chosen."""
        return PathTable.from_iterable(self.names).hashes(seed)

    def on_both_sides(self) -> list[str]:
        """Return a line for each split that shares groups with train, which makes its figures too good."""
        lines = []
        for split, ids in self.ids.items():
            shared = np.intersect1d(ids, self.ids["train"]) if split != "train" else ids[:0]
            if len(shared):
                names = display_list([printable(self.names[group]) for group in shared])
                lines.append(f"groups ({self.key}) that are in train and in {split}, {len(shared):,} of them: {names}")
        return lines


def groups_by_regex(parts: Mapping[str, SplittableSource], pattern: str | None) -> Groups | None:
    """Return the groups that `data.group_regex` names in the paths of each split; None: it is not set."""
    if pattern is None:
        return None
    names: dict[str, int] = {}
    ids = {}
    for split, source in parts.items():
        assert isinstance(source, FileSource), "only sources of files have paths"
        ids[split] = groups_by_path(source.paths, pattern, names)
    return Groups(REGEX, pattern, ids, list(names))


def groups_by_path(paths: PathTable, pattern: str, names: dict[str, int]) -> np.ndarray:
    """Return the group of each path, (N,) int64; groups that are new are added to `names`.

    The name is what the first parenthesis of `pattern` matches, or the whole match without one, anywhere in the path.

    Raises:
        ConfigError: a path does not match.
    """
    expression = re.compile(pattern)
    groups = np.empty(len(paths), np.int64)
    for row, path in enumerate(paths):
        match = expression.search(canonical(path))
        name = None if match is None else match.group(min(1, expression.groups))
        if name is None:
            rule = f"does not match {printable(path)}, so it is not known what that image belongs to"
            raise ConfigError(REGEX, pattern, rule, "a group in parentheses names it, such as 'video_([0-9]+)'")
        groups[row] = names.setdefault(name, len(names))
    return groups


def grouped_split(
    labels: np.ndarray,
    groups: np.ndarray,
    hashes: np.ndarray,
    fraction: float,
    *,
    totals: np.ndarray | None = None,
    keep: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and of what is split off, both rising, with every group on one side.

    The groups come in the order of their hashes. One is split off if that brings the classes' shares nearer to
    `fraction`, all classes weighing the same, and leaves each class in train. So the split does not depend on the
    order of the images, and images that are added move few groups.

    Args:
        labels: (N,) int64 class ids.
        groups: (N,) int64 below G.
        hashes: (G,) uint64 of the groups' names.
        totals: (K,) images of each class that the fraction is of; None: those given.
        keep: groups of each class that stay.

    Returns:
        (N_train,) and (N_off,) int64; the second is empty if no group can leave train.
    """
    counts = np.bincount(labels)
    targets = fraction * (counts if totals is None else totals[: len(counts)]).astype(np.float64)
    members = [rows for _, rows in members_by_hash(groups, hashes)]
    of_group = [np.unique(labels[rows], return_counts=True) for rows in members]
    num_left = np.bincount(np.concatenate([present for present, _ in of_group]))
    taken = np.zeros(len(counts))
    is_off = np.zeros(len(labels), bool)
    for rows, (present, inside) in zip(members, of_group, strict=True):
        before, after = taken[present], taken[present] + inside
        gaps = np.abs(after - targets[present]) - np.abs(before - targets[present])
        if (gaps / counts[present]).sum() < 0 and (num_left[present] > keep).all():
            taken[present] = after
            num_left[present] -= 1
            is_off[rows] = True
    return np.flatnonzero(~is_off), np.flatnonzero(is_off)
