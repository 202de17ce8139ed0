"""The split rules: a stratified val split that is the same on every machine, and what is checked of any split.

The split does not come from a random generator, whose stream a library may change. Every image gets a 64-bit hash of
(seed, its path or row), and each class gives the images with its smallest hashes to val, and those with its largest to
test. So the split depends on the seed and the names only: not on the order of the listing, the file system, the
platform or a version of numpy, and adding images to a folder moves few of the old ones. Test does not depend on what
val takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import DataConfig, parse_fold
from cvtrain.config.text import display_list
from cvtrain.data.sources.folds import grouped_folds, stratified_folds
from cvtrain.data.sources.groups import Groups, grouped_split
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource, ImageSource, Splits, SplittableSource
from cvtrain.runtime.rng import GOLDEN_GAMMA, mix_bits

_LISTED_CLASSES = 30  # a longer table of class counts is summed up


def hash_rows(count: int, seed: int) -> np.ndarray:
    """(count,) uint64: SplitMix64 (Steele, Lea and Flood 2014) of row i in the stream of `seed`."""
    gamma = np.uint64(GOLDEN_GAMMA)
    # The seed is mixed first: with it merely added, seed s + 1 would give the hashes of seed s, shifted by a row.
    start = mix_bits(np.array([seed % 2**64], dtype=np.uint64) + gamma)
    return mix_bits(start + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * gamma)  # arrays wrap modulo 2**64


def split_hashes(source: ImageSource, seed: int) -> np.ndarray:
    """(N,) uint64: the hashes that `stratified_split` sorts by, of paths for files, else of rows."""
    return source.paths.hashes(seed) if isinstance(source, FileSource) else hash_rows(len(source), seed)


def stratified_split(
    labels: np.ndarray, hashes: np.ndarray, fraction: float, *, totals: np.ndarray | None = None, keep: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and of what is split off it, both rising.

    A class of n images gives `round(fraction * n)` (halves up) of them, but at least 1, and at least `keep` stay in
    train; a class with no more than that stays in train.

    Args:
        labels: (N,) int64 class ids.
        hashes: (N,) uint64; per class the images with the smallest are split off.
        fraction: share of each class, above 0 and below 1.
        totals: (K,) images of each class that the fraction is of; None: those given.

    Returns:
        (N_train,) and (N_off,) int64.
    """
    order = np.lexsort((hashes, labels))  # by class, then by hash
    counts = np.bincount(labels)
    wanted = np.floor(fraction * (counts if totals is None else totals[: len(counts)]) + 0.5).astype(np.int64)
    num_off = np.clip(wanted, 1, np.maximum(counts - keep, 1))
    num_off[counts <= keep] = 0
    starts = np.cumsum(counts) - counts
    place = np.arange(len(labels)) - np.repeat(starts, counts)  # rank of each image within its class
    chosen = place < np.repeat(num_off, counts)
    return np.sort(order[~chosen]), np.sort(order[chosen])


@dataclass(frozen=True)
class SplitSettings:
    """What `data.val_fraction`, `split_seed`, `test_fraction` and `fold` say.

    Attributes:
        fold: number of the fold that is val, from 0, and how many there are; None: `val_fraction` counts.
    """

    val_fraction: float
    split_seed: int = 0
    test_fraction: float | None = None
    fold: tuple[int, int] | None = None

    @classmethod
    def of(cls, config: DataConfig) -> "SplitSettings":
        try:
            fold = None if config.fold is None else parse_fold(config.fold)
        except ValueError as error:  # the command line is checked, a checkpoint is not
            raise ConfigError("data.fold", config.fold, str(error)) from error
        return cls(config.val_fraction, config.split_seed, config.test_fraction, fold)


def complete_splits(
    parts: Mapping[str, SplittableSource],
    *,
    classes: tuple[str, ...],
    settings: SplitSettings,
    key: str,
    left_out: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    empty_classes: tuple[str, ...] = (),
    allow_untrained: bool = False,
    groups: Groups | None = None,
) -> Splits:
    """Check what every source must satisfy, and split off `train` what it has not and the settings want.

    Args:
        parts: train, and val and test if there are such.
        classes: names; every split's labels are positions in it.
        key: config key that errors name, such as `data.root`.
        allow_untrained: take images of classes that train has none of, which no model could name.
        groups: of the images, each of which stays on one side; None: there are none.
    """
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    for name, source in parts.items():
        if len(source) == 0:
            raise ConfigError(key=key, rule=f"the {name} split has no images")
    held_out: dict[str, ImageSource | None] = {} if allow_untrained else {"val": val, "test": test}
    found = [*warnings, *_warn_of_similar(classes), *_untrained_classes(train, held_out, classes, key)]
    pool = _Pool.of(train, groups, settings, key)
    if settings.test_fraction is not None:
        if test is not None:
            rule = "has no effect: the data has a test split of its own"
            raise ConfigError("data.test_fraction", settings.test_fraction, rule, "leave it out, or move that away")
        pool, test = pool.without_test(settings.test_fraction)
    is_made = val is None or settings.fold is not None
    if settings.fold is not None and val is not None:
        pool, val = pool.with_val(val), None
    singles = _classes_where(np.bincount(pool.source.labels, minlength=len(classes)) == 1, classes)
    if is_made and singles:
        found.append(f"classes with a single image have none in val: {display_list(singles)}")
    if settings.fold is not None:
        train, val = pool.fold(classes)
    elif val is None:
        train, val = pool.without_val()
    else:
        train = pool.source
    known = {*singles, *_absent(train, classes)} if is_made else set()
    if missing := [name for name in _absent(val, classes) if name not in known]:
        found.append(f"classes without images in val: {display_list(missing)}")
    if pool.groups is not None:
        found += pool.groups.on_both_sides()
    made = [*notes, *pool.notes]
    if test is None:
        made.append("there is no test split: val selects, and nothing else is scored")
    elif missing := _absent(test, classes):
        found.append(f"classes without images in test: {display_list(missing)}")
    return Splits(train, val, test, classes, left_out, tuple(made), tuple(found), empty_classes)


@dataclass(frozen=True)
class _Pool:
    """Images that val and test are taken from.

    Attributes:
        hashes: (N,) uint64 of the images.
        totals: (K,) images of each class before any were taken.
        groups: whose `ids["train"]` are those of the images.
        names: of the splits that they come from.
        notes: lines on what was taken.
    """

    source: SplittableSource
    hashes: np.ndarray
    totals: np.ndarray
    groups: Groups | None
    settings: SplitSettings
    key: str
    names: str = "train"
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, train: SplittableSource, groups: Groups | None, settings: SplitSettings, key: str) -> "_Pool":
        totals = np.bincount(train.labels)
        return cls(train, split_hashes(train, settings.split_seed), totals, groups, settings, key)

    def take(self, rows: np.ndarray) -> "_Pool":
        groups = self.groups
        if groups is not None:
            groups = replace(groups, ids={**groups.ids, "train": groups.ids["train"][rows]})
        return replace(self, source=self.source.take(rows), hashes=self.hashes[rows], groups=groups)

    def without_test(self, fraction: float) -> "tuple[_Pool, SplittableSource]":
        """Return what stays for train and val, and test."""
        # The largest hashes, and two images of each class stay, one of them for val.
        stay, off = self._split_off("test", fraction, reverse=True, keep=2)
        return self.take(stay), self.source.take(off)

    def without_val(self) -> tuple[SplittableSource, SplittableSource]:
        stay, off = self._split_off("val", self.settings.val_fraction, reverse=False, keep=1)
        return self.source.take(stay), self.source.take(off)

    def with_val(self, val: SplittableSource) -> "_Pool":
        """Return train and a val split of the user's own together, for folds."""
        train = self.source
        if not (isinstance(train, FileSource) and isinstance(val, FileSource) and train.root == val.root):
            rule = "the data has a val split of its own, and only images in files can be pooled with those of train"
            raise ConfigError("data.fold", "{}/{}".format(*self.settings.fold or ()), rule, "leave one of the two out")
        pooled = FileSource(
            root=train.root,
            paths=PathTable.concatenate([train.paths, val.paths]),
            labels=np.concatenate([train.labels, val.labels]),
            reader=train.reader,
        )
        groups = self.groups
        if groups is not None:
            ids = {**groups.ids, "train": np.concatenate([groups.ids["train"], groups.ids["val"]])}
            del ids["val"]
            groups = replace(groups, ids=ids)
        hashes = np.concatenate([self.hashes, split_hashes(val, self.settings.split_seed)])
        return replace(self, source=pooled, hashes=hashes, groups=groups, names="train and val")

    def fold(self, classes: tuple[str, ...]) -> tuple[SplittableSource, SplittableSource]:
        """Return train and val of the fold that the settings name."""
        assert self.settings.fold is not None
        number, count = self.settings.fold
        labels, value = self.source.labels, f"{number}/{count}"
        if self.groups is None:
            largest = int(np.bincount(labels).max())
            if count > largest:
                rule = (
                    f"no class has {count} images: the largest, {classes[np.bincount(labels).argmax()]}, has {largest}"
                )
                raise ConfigError("data.fold", value, rule, f"take at most {largest} folds")
            folds = stratified_folds(labels, self.hashes, count)
            of = f"of {self.names}"
        else:
            ids = self.groups.ids["train"]
            num_groups = len(np.unique(ids))
            if count > num_groups:
                rule = f"{self.groups.key} makes {num_groups} groups, fewer than folds"
                raise ConfigError("data.fold", value, rule, f"take at most {num_groups} folds")
            folds = grouped_folds(labels, ids, self.groups.hashes(self.settings.split_seed), count)
            num_val = len(np.unique(ids[folds == number]))
            of = f"of {self.names}, {num_val:,} of {num_groups:,} groups ({self.groups.key})"
        val = np.flatnonzero(folds == number)
        if len(val) == 0:
            rule = "that fold has no images: its classes would be missing in train"
            raise ConfigError("data.fold", value, rule, "take fewer folds")
        self.notes.append(f"val is fold {value} {of}, {len(val) / len(labels):.2f} of the images (data.fold)")
        return self.source.take(np.flatnonzero(folds != number)), self.source.take(val)

    def _split_off(self, split: str, fraction: float, *, reverse: bool, keep: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that stay and those that go to `split`, in the order of the hashes or against it."""
        labels, seed, groups = self.source.labels, self.settings.split_seed, self.groups
        setting = f"data.{split}_fraction"
        if groups is None:
            hashes = ~self.hashes if reverse else self.hashes
            stay, off = stratified_split(labels, hashes, fraction, totals=self.totals, keep=keep)
            if len(off) == 0:
                number = "two" if keep == 1 else "three"
                purpose = "validation" if split == "val" else "test"
                rule = f"no class has {number} images, so none can be set aside for {purpose}"
                raise ConfigError(key=self.key, rule=rule, remedy=f"add images, or a {split} split of your own")
            self.notes.append(f"{split} is a stratified {fraction:g} of train ({setting}, data.split_seed={seed})")
            return stay, off
        ids, hashes = groups.ids["train"], groups.hashes(seed)
        stay, off = grouped_split(labels, ids, ~hashes if reverse else hashes, fraction, totals=self.totals, keep=keep)
        num_groups = len(np.unique(ids))
        if len(off) == 0:
            rule = f"makes {num_groups} groups, and none can go to {split} without taking a class from train"
            raise ConfigError(groups.key, groups.value, rule, "let the groups be smaller, or leave it out")
        share = len(off) / self.totals.sum()
        self.notes.append(
            f"{split} is {len(np.unique(ids[off])):,} of {num_groups:,} groups ({groups.key}), "
            f"{share:.2f} of the images, wanted {fraction:g}"
        )
        return stay, off


def similar_names(classes: tuple[str, ...]) -> list[list[str]]:
    """Return the classes whose names differ only by case or blanks, together: most often they are one class."""
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault("".join(name.split()).casefold(), []).append(name)
    return [names for names in by_form.values() if len(names) > 1]


def _warn_of_similar(classes: tuple[str, ...]) -> list[str]:
    similar = [" / ".join(map(repr, names)) for names in similar_names(classes)]
    if not similar:
        return []
    return [f"classes whose names differ only by case or blanks count as different ones: {display_list(similar)}"]


def _untrained_classes(
    train: ImageSource, held_out: dict[str, ImageSource | None], classes: tuple[str, ...], key: str
) -> list[str]:
    """A warning if declared classes have no images in train; an error if val or test has images of one."""
    untrained = _absent(train, classes)
    for split, source in held_out.items():
        if untrained and source is not None:
            scored = sorted(set(untrained) - set(_absent(source, classes)))
            if scored:
                raise ConfigError(
                    key=key,
                    rule=f"{split} has images of classes that train has none of: {display_list(scored)}",
                    remedy=f"add them to train, or take them out of {split}",
                )
    return [f"classes without images in train: {display_list(untrained)}"] if untrained else []


def _absent(source: ImageSource, classes: tuple[str, ...]) -> list[str]:
    return _classes_where(np.bincount(source.labels, minlength=len(classes)) == 0, classes)


def _classes_where(condition: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    return [classes[label] for label in np.flatnonzero(condition)]


def describe_classes(splits: Splits) -> tuple[str, ...]:
    """Return lines for the log: images per class and split, of many classes those with most and fewest."""
    parts = splits.parts()
    counts = {split: np.bincount(part.labels, minlength=len(splits.classes)) for split, part in parts.items()}
    if len(splits.classes) > _LISTED_CLASSES:
        train = counts["train"]
        order = np.argsort(train, kind="stable")
        fewest = ", ".join(f"{splits.classes[label]} {train[label]}" for label in order[:5])
        most = ", ".join(f"{splits.classes[label]} {train[label]}" for label in order[-5:][::-1])
        return (f"train images per class: median {np.median(train):g}; fewest: {fewest}; most: {most}",)
    width = max(len("class"), *(len(name) for name in splits.classes))
    lines = [f"{'class':<{width}}" + "".join(f"{split:>9}" for split in parts)]
    for label, name in enumerate(splits.classes):
        lines.append(f"{name:<{width}}" + "".join(f"{counts[split][label]:>9}" for split in parts))
    return tuple(lines)
