"""Folds and a test split of one's own images: disjoint, stratified, and where they were when images are added."""

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.compose import compose
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig, CustomConfig, DigitsConfig, parse_fold
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.folds import grouped_folds, stratified_folds
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.splits import hash_rows


def names(source):
    return {source.name(row) for row in range(len(source))}


@pytest.mark.parametrize("num_folds", [2, 3, 5])
def test_folds_equal_naive_ones(num_folds):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [40, 7, 1, 2]))
    hashes = hash_rows(len(labels), 3)
    expected = np.full(len(labels), -1)
    for label in (0, 1, 4):
        members = sorted(np.flatnonzero(labels == label), key=lambda row: hashes[row])
        for place, row in enumerate(members):
            ends = [int(len(members) * (fold + 1) / num_folds + 0.5) for fold in range(num_folds)]
            expected[row] = next(fold for fold, end in enumerate(ends) if place < end)
    folds = stratified_folds(labels, hashes, num_folds)
    assert np.array_equal(folds, expected)
    counts = np.stack([np.bincount(labels[folds == fold], minlength=5) for fold in range(num_folds)])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() == 1
    assert counts[:, 2].sum() == 0  # the only image of its class always trains


def test_an_image_that_is_added_moves_at_most_one_over_each_cut():
    def folds(count):
        table = PathTable.from_iterable(f"a/{number}.jpg" for number in range(count))
        return stratified_folds(np.zeros(count, np.int64), table.hashes(0), 5)

    assert max((folds(count + 1)[:count] != folds(count)).sum() for count in range(100, 130)) <= 4


def made(num_groups, num_classes, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), rng.integers(2, 12, num_groups))
    labels = np.where(rng.random(len(groups)) < 0.7, groups % num_classes, rng.integers(0, num_classes, len(groups)))
    hashes = PathTable.from_strings([f"video{number}" for number in range(num_groups)]).hashes(seed)
    return labels, groups, hashes


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_groups_are_whole_and_stratified(seed):
    labels, groups, hashes = made(60, 3, seed)
    folds = grouped_folds(labels, groups, hashes, 5)
    assert all(len(set(folds[groups == group])) == 1 for group in range(60))
    shares = np.stack([np.bincount(labels[folds == fold], minlength=3) for fold in range(5)]) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.08
    order = np.random.default_rng(1).permutation(len(labels))
    assert np.array_equal(grouped_folds(labels[order], groups[order], hashes, 5), folds[order])
    moved = [
        (grouped_folds(np.append(labels, label), np.append(groups, group), hashes, 5)[:-1] != folds).mean()
        for label, group in ((0, 7), (1, 23), (2, 51))
    ]
    assert np.mean(moved) < 0.06


def test_no_fold_takes_a_class_from_train():
    for seed in range(40):
        labels, groups, hashes = made(6, 3, seed)
        folds = grouped_folds(labels, groups, hashes, 3)
        for fold in range(3):
            assert set(labels[folds != fold]) == set(labels)
    # the only group of class 1 is in no fold
    assert grouped_folds(np.array([0, 0, 1, 0]), np.array([0, 1, 2, 3]), hash_rows(4, 0), 2)[2] == -1


def test_every_image_is_val_in_one_fold_and_test_in_none():
    whole = build_splits(DigitsConfig(test_fraction=0.1))
    parts = [build_splits(DigitsConfig(test_fraction=0.1, fold=f"{number}/5")) for number in range(5)]
    in_val = [names(part.val) for part in parts]
    assert sum(map(len, in_val)) == len(set.union(*in_val)) == 1797 - len(whole.test)
    assert all(names(part.test) == names(whole.test) and not names(part.test) & names(part.train) for part in parts)
    assert [len(part) for part in in_val] == [324, 324, 322, 324, 324]
    assert parts[1].notes == (
        "test is a stratified 0.1 of train (data.test_fraction, data.split_seed=0)",
        "val is fold 1/5 of train, 0.20 of the images (data.fold)",
    )


def test_test_split_leaves_val_as_it_was_and_does_not_depend_on_it():
    plain, tested = build_splits(DigitsConfig()), build_splits(DigitsConfig(test_fraction=0.15))
    assert names(tested.val) == names(plain.val)
    assert names(tested.train) | names(tested.test) == names(plain.train)
    expected = np.floor(0.15 * np.bincount(np.concatenate([plain.train.labels, plain.val.labels])) + 0.5)
    assert np.bincount(tested.test.labels).tolist() == expected.tolist()
    assert names(build_splits(DigitsConfig(test_fraction=0.15, val_fraction=0.5)).test) == names(tested.test)
    assert names(build_splits(DigitsConfig(test_fraction=0.15, split_seed=1)).test) != names(tested.test)


@pytest.fixture
def root(tmp_path):
    """Ten days of four photos of each of two classes, in train/ and val/."""
    for split, days in (("train", range(8)), ("val", range(8, 10))):
        for name in ("ant", "bee"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for day in days:
                for number in range(4):
                    Image.new("L", (2, 2)).save(folder / f"day{day}_{number}.png")
    return tmp_path


def test_folds_pool_train_with_a_val_split_of_ones_own(root):
    parts = [build_splits(CustomConfig(root=str(root), fold=f"{number}/4")) for number in range(4)]
    assert [len(part.val) for part in parts] == [20] * 4
    assert len(set.union(*(names(part.val) for part in parts))) == 80
    assert parts[0].notes[0] == "val is fold 0/4 of train and val, 0.25 of the images (data.fold)"


def days(source):
    return {name.split("/")[-1].split("_")[0] for name in names(source)}


def test_groups_are_in_one_of_train_val_and_test(root):
    config = CustomConfig(root=str(root), group_regex=r"(day\d+)_", test_fraction=0.2)
    splits = build_splits(config)
    assert [len(days(part)) for part in (splits.train, splits.val, splits.test)] == [6, 2, 2]
    assert not days(splits.train) & days(splits.test)
    assert splits.notes == ("test is 2 of 8 groups (data.group_regex), 0.25 of the images, wanted 0.2",)
    flat = CustomConfig(root=str(root / "train"), group_regex=r"(day\d+)_", test_fraction=0.25, val_fraction=0.25)
    splits = build_splits(flat)
    assert [len(days(part)) for part in (splits.train, splits.val, splits.test)] == [4, 2, 2]
    assert len(days(splits.train) | days(splits.val) | days(splits.test)) == 8
    config = CustomConfig(root=str(root), group_regex=r"(day\d+)_", fold="1/5")
    splits = build_splits(config)
    assert (len(days(splits.val)), days(splits.val) & days(splits.train)) == (2, set())
    assert splits.notes[0].startswith("val is fold 1/5 of train and val, 2 of 10 groups (data.group_regex), 0.20 of")
    assert splits.warnings == ()


def test_groups_of_a_manifest_make_folds(root):
    file = root / "labels.csv"
    rows = [
        f"train/{name}/day{day}_{number}.png,{name},p{day}"
        for name in ("ant", "bee")
        for day in range(8)
        for number in range(4)
    ]
    file.write_text("\n".join(["path,label,person", *rows]))
    parts = [build_splits(CsvConfig(file=str(file), group_column="person", fold=f"{n}/4")) for n in range(4)]
    assert [len(days(part.val)) for part in parts] == [2] * 4
    assert len(set.union(*(days(part.val) for part in parts))) == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fold": "0/50"}, "no class has 50 images: the largest, ant, has 40.*take at most 40 folds"),
        ({"fold": "0/11", "group_regex": r"(day\d+)_"}, "makes 10 groups, fewer than folds"),
        ({"fold": "0/2", "group_regex": r"([a-z]+)/day"}, "that fold has no images"),
        ({"test_fraction": 0.1, "group_regex": r"([a-z]+)/day"}, "makes 2 groups, and none can go to test"),
    ],
)
def test_images_that_make_no_folds(root, settings, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        build_splits(CustomConfig(root=str(root), **settings))


def test_a_test_split_of_ones_own_stays(root):
    (root / "val").rename(root / "test")
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0\.1: has no effect: the data has a test split"):
        build_splits(CustomConfig(root=str(root), test_fraction=0.1))
    splits = build_splits(CustomConfig(root=str(root), fold="0/4"))
    assert (len(splits.val), len(splits.test)) == (16, 16)


def test_small_classes_keep_an_image_for_train_and_val(tmp_path):
    for name, count in (("one", 1), ("two", 2), ("three", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (2, 2)).save(tmp_path / name / f"{number}.png")
    splits = build_splits(CustomConfig(root=str(tmp_path), test_fraction=0.6, val_fraction=0.3))
    counts = [np.bincount(part.labels, minlength=3).tolist() for part in splits.parts().values()]
    assert dict(zip(splits.classes, zip(*counts, strict=True), strict=True)) == {
        "one": (1, 0, 0),
        "two": (1, 1, 0),
        "three": (1, 1, 1),
    }
    assert splits.warnings == (
        "classes with a single image have none in val: one",
        "classes without images in test: one, two",
    )


@pytest.mark.parametrize("text", ["5", "1/1", "5/5", "-1/5", "a/b", "0/5/2"])
def test_wrong_folds_are_refused_at_once(text):
    with pytest.raises(ConfigError, match=r"data\.fold="):
        compose("data=digits", f"data.fold={text}")
    assert parse_fold("4/5") == (4, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.fold=0/5", "data.val_fraction=0.3"], r"data\.val_fraction=0\.3: has no effect with data\.fold=0/5"),
        (["data.test_fraction=0.8"], r"leaves nothing for train beside data\.val_fraction=0\.2"),
        (["data=huggingface", "data.path=x", "data.val_split=v", "data.fold=0/5"], r"cannot be had with data\.val_spl"),
        (["data=huggingface", "data.path=x", "data.test_split=t", "data.test_fraction=0.1"], "has no effect with data"),
    ],
)
def test_settings_that_exclude_each_other(words, message):
    with pytest.raises(ConfigError, match=message):
        compose(*words)
