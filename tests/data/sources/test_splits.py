import numpy as np
import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import ArraySource, FileSource, ImageSource
from cvtrain.data.sources.splits import (
    SplitSettings,
    complete_splits,
    describe_classes,
    hash_rows,
    split_hashes,
    stratified_split,
)

MASK = 2**64 - 1

# Of 20 images, computed by hashlib and by the reference SplitMix64 below, sorted in Python.
FILES_IN_VAL = [8, 9, 15, 17, 19]
ROWS_IN_VAL = [5, 7, 11, 12, 19]


def splitmix64(state: int) -> int:
    """One output of the reference implementation, whose state advances by gamma before it."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def source_of(labels: list[int]) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return ArraySource(images=images, labels=np.array(labels, dtype=np.int64), prefix="x")


def complete(train: ImageSource, val: ImageSource | None = None, test: ImageSource | None = None, **changes: object):
    arguments = {"classes": ("a", "b"), "settings": SplitSettings(0.25), "key": "data.root", **changes}
    parts = {"train": train, "val": val, "test": test}
    return complete_splits({name: source for name, source in parts.items() if source is not None}, **arguments)


def test_the_reference_splitmix64_is_the_published_one() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output for seed 0, of Vigna's splitmix64.c


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_hash_rows_is_the_splitmix64_stream_of_the_mixed_seed(seed: int) -> None:
    start = splitmix64(seed)
    expected = [splitmix64((start + row * 0x9E3779B97F4A7C15) & MASK) for row in range(50)]
    assert hash_rows(50, seed).tolist() == expected


def test_neighbouring_seeds_are_not_the_same_stream_shifted() -> None:
    assert not set(hash_rows(1000, 1).tolist()) & set(hash_rows(1000, 2).tolist())


def test_split_equals_a_naive_one() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2] + [4] * 30)[np.argsort(hash_rows(40, 9))]
    hashes = hash_rows(40, 3)
    val = []
    for label in set(labels.tolist()):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: hashes[row])
        count = len(members)
        val += members[: 0 if count == 1 else min(max(int(0.25 * count + 0.5), 1), count - 1)]
    train_indices, val_indices = stratified_split(labels, hashes, 0.25)
    assert val_indices.tolist() == sorted(val)
    assert train_indices.tolist() == sorted(set(range(40)) - set(val))


@pytest.mark.parametrize(
    ("count", "fraction", "num_val"),
    [(1, 0.9, 0), (2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2), (10, 0.25, 3), (10, 0.24, 2), (1000, 0.2, 200)],
)
def test_images_of_a_class_that_go_to_val(count: int, fraction: float, num_val: int) -> None:
    labels = np.zeros(count, np.int64)
    train, val = stratified_split(labels, hash_rows(count, 0), fraction)
    assert (len(train), len(val)) == (count - num_val, num_val)


def test_split_of_files_does_not_depend_on_their_order() -> None:
    names = [f"{'ab'[number % 2]}/{number}.jpg" for number in range(200)]
    chosen = []
    for order in (names, names[::-1]):
        labels = np.array(["ab".index(name[0]) for name in order])
        source = FileSource(root="/", paths=PathTable.from_iterable(order), labels=labels, reader=lambda path: None)
        splits = complete(source)
        chosen.append({splits.val.name(row) for row in range(len(splits.val))})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 50


def test_adding_an_image_moves_at_most_one_other() -> None:
    def val_names(count: int) -> set[str]:
        table = PathTable.from_iterable(f"a/{number}.jpg" for number in range(count))
        _, val = stratified_split(np.zeros(count, np.int64), table.hashes(0), 0.25)
        return {table[row] for row in val}

    for count in range(100, 120):
        assert len(val_names(count) - val_names(count + 1)) <= 1


def test_known_split_of_files_and_of_rows() -> None:
    """These numbers hold on every machine; a change of them changes everybody's validation set."""
    files = FileSource(
        root="/",
        paths=PathTable.from_iterable(f"a/{number}.jpg" for number in range(20)),
        labels=np.zeros(20, np.int64),
        reader=lambda path: None,
    )
    assert stratified_split(files.labels, split_hashes(files, 0), 0.25)[1].tolist() == FILES_IN_VAL
    rows = source_of([0] * 20)
    assert stratified_split(rows.labels, split_hashes(rows, 0), 0.25)[1].tolist() == ROWS_IN_VAL
    assert stratified_split(rows.labels, split_hashes(rows, 1), 0.25)[1].tolist() != ROWS_IN_VAL


def test_class_with_one_image_stays_in_train_and_is_named() -> None:
    splits = complete(source_of([0] * 8 + [1]))
    assert np.bincount(splits.train.labels).tolist() == [6, 1]
    assert np.bincount(splits.val.labels).tolist() == [2]
    assert splits.warnings == ("classes with a single image have none in val: b",)
    assert splits.notes[0] == "val is a stratified 0.25 of train (data.val_fraction, data.split_seed=0)"


def test_class_that_val_lacks_is_warned_of() -> None:
    splits = complete(source_of([0, 1]), source_of([0]), source_of([1]))
    assert splits.warnings == ("classes without images in val: b", "classes without images in test: a")
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((source_of([0, 1]), source_of([])), "the val split has no images"),
        ((source_of([0, 1]), None, source_of([])), "the test split has no images"),
        ((source_of([0, 1]),), "no class has two images"),
        ((source_of([0, 0]), source_of([0, 1])), "val has images of classes that train has none of: b"),
    ],
)
def test_splits_that_cannot_be(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete(*arguments)


def test_description_counts_every_class() -> None:
    splits = complete(source_of([0, 0, 0, 1]), source_of([0, 1]), classes=("ants", "a long name"))
    assert describe_classes(splits) == (
        "class          train      val",
        "ants               3        1",
        "a long name        1        1",
    )


def test_description_of_many_classes_is_summed_up() -> None:
    labels = [label for label in range(40) for _ in range(label + 1)]
    splits = complete(source_of(labels), source_of(labels), classes=tuple(f"c{label}" for label in range(40)))
    assert describe_classes(splits)[-1] == (
        "train images per class: median 20.5; fewest: c0 1, c1 2, c2 3, c3 4, c4 5; "
        "most: c39 40, c38 39, c37 38, c36 37, c35 36"
    )
