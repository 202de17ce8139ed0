"""The split rules: a stratified val split that is the same on every machine, and what is checked of any split.

The split does not come from a random generator, whose stream a library may change. Every image gets a 64-bit hash of
(seed, its path or row), and each class gives the images with its smallest hashes to val. So the split depends on the
seed and the names only: not on the order of the listing, the file system, the platform or a version of numpy, and
adding images to a folder moves few of the old ones.
"""

from collections.abc import Mapping

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import display_list
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


def stratified_split(labels: np.ndarray, hashes: np.ndarray, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and of val, both rising.

    A class of n images gives `round(val_fraction * n)` (halves up) of them to val, but at least 1, and at least 1 stays
    in train; a class with a single image stays in train.

    Args:
        labels: (N,) int64 class ids.
        hashes: (N,) uint64; per class the smallest go to val.
        val_fraction: share of each class, above 0 and below 1.

    Returns:
        (N_train,) and (N_val,) int64.
    """
    order = np.lexsort((hashes, labels))  # by class, then by hash
    counts = np.bincount(labels)
    num_val = np.clip(np.floor(val_fraction * counts + 0.5).astype(np.int64), 1, np.maximum(counts - 1, 1))
    num_val[counts < 2] = 0
    starts = np.cumsum(counts) - counts
    place = np.arange(len(labels)) - np.repeat(starts, counts)  # rank of each image within its class
    chosen = place < np.repeat(num_val, counts)
    return np.sort(order[~chosen]), np.sort(order[chosen])


def complete_splits(
    parts: Mapping[str, SplittableSource],
    *,
    classes: tuple[str, ...],
    val_fraction: float,
    split_seed: int,
    key: str,
    left_out: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    empty_classes: tuple[str, ...] = (),
    allow_untrained: bool = False,
    groups: Groups | None = None,
) -> Splits:
    """Check what every source must satisfy and, without a `val`, split one off `train`.

    Args:
        parts: train, and val and test if there are such.
        classes: names; every split's labels are positions in it.
        key: config key that errors name, such as `data.root`.
        allow_untrained: take images of classes that train has none of, which no model could name.
        groups: of the images, each of which stays on one side; None: there are none.
    """
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    for split, source in parts.items():
        if len(source) == 0:
            raise ConfigError(key=key, rule=f"the {split} split has no images")
    held_out: dict[str, ImageSource | None] = {} if allow_untrained else {"val": val, "test": test}
    found = [*warnings, *_warn_of_similar(classes), *_untrained_classes(train, held_out, classes, key)]
    made = list(notes)
    if val is None:
        singles = [classes[label] for label in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 1)]
        if singles:
            found.append(f"classes with a single image have none in val: {display_list(singles)}")
        if groups is None:
            made.append(
                f"val is a stratified {val_fraction:g} of train (data.val_fraction, data.split_seed={split_seed})"
            )
            train, val = _split_off_val(train, val_fraction, split_seed, key)
        else:
            train, val, note = _split_off_groups(train, groups, val_fraction, split_seed)
            made.append(note)
    elif missing := _absent(val, classes):
        found.append(f"classes without images in val: {display_list(missing)}")
    if groups is not None:
        found += groups.on_both_sides()
    if test is None:
        made.append("there is no test split: val selects, and nothing else is scored")
    elif missing := _absent(test, classes):
        found.append(f"classes without images in test: {display_list(missing)}")
    return Splits(train, val, test, classes, left_out, tuple(made), tuple(found), empty_classes)


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


def _split_off_val(
    train: SplittableSource, val_fraction: float, split_seed: int, key: str
) -> tuple[SplittableSource, SplittableSource]:
    train_indices, val_indices = stratified_split(train.labels, split_hashes(train, split_seed), val_fraction)
    if len(val_indices) == 0:
        raise ConfigError(
            key=key,
            rule="no class has two images, so none can be set aside for validation",
            remedy="add images, or a val split of your own",
        )
    return train.take(train_indices), train.take(val_indices)


def _split_off_groups(
    train: SplittableSource, groups: Groups, val_fraction: float, split_seed: int
) -> tuple[SplittableSource, SplittableSource, str]:
    """Return train and val with every group on one side, and a line about them."""
    ids = groups.ids["train"]
    hashes = PathTable.from_iterable(groups.names).hashes(split_seed)
    train_indices, val_indices = grouped_split(train.labels, ids, hashes, val_fraction)
    num_groups = len(np.unique(ids))
    if len(val_indices) == 0:
        rule = f"makes {num_groups} groups, and none can go to val without taking a class from train"
        raise ConfigError(groups.key, groups.value, rule, "let the groups be smaller, or leave it out")
    num_val = len(np.unique(ids[val_indices]))
    share = len(val_indices) / len(ids)
    note = f"val is {num_val:,} of {num_groups:,} groups ({groups.key}), {share:.2f} of the images"
    return train.take(train_indices), train.take(val_indices), f"{note}, wanted {val_fraction:g}"


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
    counts = np.bincount(source.labels, minlength=len(classes))
    return [classes[label] for label in np.flatnonzero(counts == 0)]


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
