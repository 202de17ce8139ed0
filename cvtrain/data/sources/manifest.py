"""Source `csv`: a text file with one row per image: its path, its label and, if wanted, its split.

Paths: relative to `root`; `\\` counts as `/`, since manifests are written on Windows too. `.` and `..` are resolved
by name, and what then leads out of root is refused unless `allow_outside_root`; links inside root may lead anywhere.
Paths, labels and splits lose spaces at both ends. A path in another Unicode form than the file's name (macOS stores
decomposed names) means that file.
"""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH100, PTH111, PTH117, PTH120

import os
import posixpath
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig
from cvtrain.config.text import display_list
from cvtrain.data.sources.classes import check_known, class_name, order_classes
from cvtrain.data.sources.exclude import read_exclusions
from cvtrain.data.sources.folder import check_folder
from cvtrain.data.sources.groups import COLUMN, Groups, groups_by_regex
from cvtrain.data.sources.manifest_files import find_files
from cvtrain.data.sources.manifest_rows import Row, read_rows
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.data.sources.splits import SplitSettings, complete_splits

_SPLIT_NAMES = ("train", "val", "test")
_TRAIN, _VAL, _TEST = range(3)
_SPLIT_IDS = {
    **dict.fromkeys(("train", "training"), _TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), _VAL),
    **dict.fromkeys(("test", "testing"), _TEST),
}
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
# Columns of true and false, by name: what true means, and what false means.
_FLAG_COLUMNS = {
    **dict.fromkeys(("is_valid", "is_val", "is_validation", "is_dev", "valid", "val", "validation"), (_VAL, _TRAIN)),
    **dict.fromkeys(("is_train", "train", "training"), (_TRAIN, _VAL)),
    **dict.fromkeys(("is_test", "test"), (_TEST, _TRAIN)),
}


@dataclass(frozen=True)
class Manifest:
    """The rows as arrays, in file order.

    Attributes:
        paths: N paths, relative to root or absolute.
        labels: (N,) int64 positions in `names`.
        names: class names in order of appearance.
        splits: (N,) int8: 0 train, 1 val, 2 test.
        numbers: (N,) int64 line numbers, from 1, for errors.
        groups: (N,) int64 positions in `group_names`; 0 without groups.
        group_names: in order of appearance; empty without groups.
    """

    paths: PathTable
    labels: np.ndarray
    names: tuple[str, ...]
    splits: np.ndarray
    numbers: np.ndarray
    groups: np.ndarray
    group_names: tuple[str, ...]

    def take(self, indices: np.ndarray) -> "Manifest":
        """The rows at `indices` (M,) int64."""
        return Manifest(
            self.paths.take(indices),
            self.labels[indices],
            self.names,
            self.splits[indices],
            self.numbers[indices],
            self.groups[indices],
            self.group_names,
        )


def build_csv(config: CsvConfig, reader: Callable[[str], np.ndarray], *, allow_untrained: bool = False) -> Splits:
    """The splits of the manifest `config.file`, less the images of `config.exclude`.

    Args:
        allow_untrained: take classes of val and test that train lacks, too.

    Raises:
        ConfigError: the manifest or a file in it is missing, or a row is wrong; it names the row.
    """
    root = os.path.expanduser(config.root or os.path.dirname(config.file) or ".")
    check_folder(root)
    manifest = _read_manifest(config, root)
    excluded = read_exclusions(config.exclude)
    manifest = manifest.take(excluded.kept(manifest.paths))  # before the files are looked for: some may be missing
    manifest = replace(manifest, paths=find_files(manifest.paths, manifest.numbers, root, file=config.file))
    manifest, warnings = _drop_repeated(manifest, config.file)
    _check_values_are_used(manifest, config)
    in_train = manifest.splits == _TRAIN
    if not in_train.any():
        raise ConfigError(key="data.file", value=config.file, rule="has no rows of split train")
    named = slice(None) if allow_untrained else in_train
    classes = order_classes(manifest.names[label] for label in np.unique(manifest.labels[named]))
    sources, group_ids = {}, {}
    for split_id, split in enumerate(_SPLIT_NAMES):
        part = manifest.take(np.flatnonzero(manifest.splits == split_id))
        if len(part.paths):
            group_ids[split] = part.groups
            sources[split] = _file_source(part, classes, split, root, config.file, reader)
    groups = groups_by_regex(sources, config.group_regex)
    if config.group_column is not None:
        groups = Groups(COLUMN, config.group_column, group_ids, list(manifest.group_names))
    return complete_splits(
        sources,
        classes=classes,
        settings=SplitSettings.of(config),
        key="data.file",
        left_out=excluded.lines(),
        warnings=(*warnings, *excluded.warnings()),
        groups=groups,
        allow_untrained=allow_untrained,
    )


def _file_source(
    part: Manifest, classes: tuple[str, ...], split: str, root: str, file: str, reader: Callable[[str], np.ndarray]
) -> FileSource:
    """The rows of one split, under the ids of `classes`."""
    names = [part.names[label] for label in np.unique(part.labels)]
    check_known(names, classes, split=split, key="data.file", value=file)
    ids = np.array([classes.index(name) if name in classes else -1 for name in part.names], dtype=np.int64)
    return FileSource(root=root, paths=part.paths, labels=ids[part.labels], reader=reader)


def _read_manifest(config: CsvConfig, root: str) -> Manifest:
    labels, splits, numbers, groups = array("q"), array("b"), array("q"), array("q")
    ids: dict[str, int] = {}
    group_ids: dict[str, int] = {}
    meanings = split_ids(config)
    absolute_root = os.path.abspath(root)

    def paths() -> Iterator[str]:
        for row in read_rows(config):
            yield _path_below_root(row, absolute_root, config)
            labels.append(ids.setdefault(class_name(row.label), len(ids)))
            splits.append(_split_id(row, meanings, config))
            numbers.append(row.number)
            groups.append(0 if row.group is None else group_ids.setdefault(row.group, len(group_ids)))

    table = PathTable.from_iterable(paths())
    return Manifest(
        table,
        np.array(labels, dtype=np.int64),
        tuple(ids),
        np.array(splits, dtype=np.int8),
        np.array(numbers, dtype=np.int64),
        np.array(groups, dtype=np.int64),
        tuple(group_ids),
    )


def split_ids(config: CsvConfig) -> dict[str, int]:
    """The split that each value of the split column means, by the value in lower case."""
    column = config.split_column.casefold()
    ids = dict(_SPLIT_IDS)
    if column in _FLAG_COLUMNS:
        if_true, if_false = _FLAG_COLUMNS[column]
        ids |= dict.fromkeys(_TRUE, if_true) | dict.fromkeys(_FALSE, if_false)
    return ids


def _check_values_are_used(manifest: Manifest, config: CsvConfig) -> None:
    for split, key, values in (
        (_VAL, "data.val_values", config.val_values),
        (_TEST, "data.test_values", config.test_values),
    ):
        if values and not (manifest.splits == split).any():
            raise ConfigError(
                key=key,
                value=values,
                rule=f"{config.file} has no row with such a value in column {config.split_column}",
            )


def _split_id(row: Row, ids: dict[str, int], config: CsvConfig) -> int:
    if row.split is None:
        return _TRAIN
    value = row.split.casefold()
    if config.val_values or config.test_values:
        is_val, is_test = (
            value in {text.strip().casefold() for text in values} for values in (config.val_values, config.test_values)
        )
        return _VAL if is_val else _TEST if is_test else _TRAIN
    split_id = ids.get(value)
    if split_id is None:
        remedy = f"data.val_values=[{row.split}] makes such rows val and all others train" if row.split else ""
        rule = f"line {row.number}: the split is {row.split!r}; allowed are train, val and test"
        raise ConfigError("data.file", config.file, rule, remedy)
    return split_id


def _path_below_root(row: Row, absolute_root: str, config: CsvConfig) -> str:
    """The row's path relative to root, in its shortest form; or absolute, if it may lead elsewhere and does."""
    path = row.path.replace("\\", "/")
    if not path.endswith(config.path_suffix):
        path += config.path_suffix
    if os.path.isabs(path):
        # Windows: another drive has no relative path, and stays absolute.
        same_drive = os.path.splitdrive(path)[0].casefold() == os.path.splitdrive(absolute_root)[0].casefold()
        path = os.path.relpath(path, absolute_root).replace(os.sep, "/") if same_drive else path
    path = posixpath.normpath(path)
    outside = path == ".." or path.startswith("../") or os.path.isabs(path)
    if outside and not config.allow_outside_root:
        rule = f"line {row.number}: {row.path} leads out of the root {absolute_root}"
        remedy = "set data.root to a folder above all images, or data.allow_outside_root=true"
        raise ConfigError("data.file", config.file, rule, remedy)
    return path


def _drop_repeated(manifest: Manifest, file: str) -> tuple[Manifest, list[str]]:
    """The manifest with every path once, and warnings. A path with two labels or in two splits is an error."""
    hashes = manifest.paths.hashes(0)  # equal paths have equal hashes; comparing 8 bytes beats a dict of strings
    order = np.argsort(hashes, kind="stable")
    repeats = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    dropped = []
    for position in repeats:
        first, second = int(order[position]), int(order[position + 1])
        if manifest.paths[first] != manifest.paths[second]:
            continue  # two spellings of one name in Unicode, or two names with one hash
        for rows, what, noun in (
            (manifest.labels, [manifest.names[manifest.labels[row]] for row in (first, second)], "labels"),
            (manifest.splits, [_SPLIT_NAMES[manifest.splits[row]] for row in (first, second)], "splits"),
        ):
            if rows[first] != rows[second]:
                rule = (
                    f"{manifest.paths[first]} has two {noun}: {what[0]} in line {manifest.numbers[first]}, "
                    f"{what[1]} in line {manifest.numbers[second]}"
                )
                remedy = "keep one of the two rows"
                raise ConfigError("data.file", file, rule, remedy)
        dropped.append(second)
    if not dropped:
        return manifest, []
    names = [f"{manifest.paths[row]} (line {manifest.numbers[row]})" for row in sorted(dropped)]
    kept = np.setdiff1d(np.arange(len(manifest.paths)), dropped)
    return manifest.take(kept), [f"{len(dropped)} repeated rows count once: {display_list(names)}"]
