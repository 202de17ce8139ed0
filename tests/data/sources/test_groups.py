"""Groups of images: never on two sides, stratified as well as they allow, and where they were when images are added."""

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.compose import compose
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig, CustomConfig
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.groups import grouped_split, groups_by_path
from cvtrain.data.sources.path_table import PathTable


def made(num_groups=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 12, num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    labels = np.where(rng.random(len(groups)) < 0.7, groups % classes, rng.integers(0, classes, len(groups)))
    hashes = PathTable.from_strings([f"video{number}" for number in range(num_groups)]).hashes(seed)
    return labels, groups, hashes


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_two_sides_and_classes_have_their_shares(seed):
    labels, groups, hashes = made(seed=seed)
    train, val = grouped_split(labels, groups, hashes, 0.2)
    assert not set(groups[train]) & set(groups[val])
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    shares = np.bincount(labels[val], minlength=3) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.06


def test_order_of_images_does_not_matter_and_new_ones_move_few_groups():
    labels, groups, hashes = made()
    val = set(groups[grouped_split(labels, groups, hashes, 0.2)[1]])
    order = np.random.default_rng(1).permutation(len(labels))
    assert set(groups[order][grouped_split(labels[order], groups[order], hashes, 0.2)[1]]) == val
    more = np.concatenate([groups, [3, 17, 41]])
    moved = set(more[grouped_split(np.concatenate([labels, [0, 1, 2]]), more, hashes, 0.2)[1]]) ^ val
    assert len(moved) <= 6


def test_a_group_that_is_a_whole_class_stays_in_train():
    labels, groups = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 2])
    for seed in range(8):
        hashes = np.random.default_rng(seed).integers(0, 2**63, 3, dtype=np.uint64)
        train, _ = grouped_split(labels, groups, hashes, 0.4)
        assert set(labels[train]) == {0, 1}


def test_names_come_from_the_first_parenthesis():
    paths = PathTable.from_strings(["a/v12_1.jpg", "b/v3_1.jpg", "b/v12_2.jpg"])
    names: dict[str, int] = {}
    assert groups_by_path(paths, r"v(\d+)_", names).tolist() == [0, 1, 0]
    assert names == {"12": 0, "3": 1}
    whole: dict[str, int] = {}
    groups_by_path(paths, "^./", whole)
    assert list(whole) == ["a/", "b/"]
    with pytest.raises(ConfigError, match=r"does not match b/v3_1\.jpg"):
        groups_by_path(paths, "v(12)", {})


@pytest.fixture
def root(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.new("L", (2, 2)).save(tmp_path / name / f"day{number // 4}_{number}.png")
    return tmp_path


def test_a_folder_is_split_by_groups(root):
    splits = build_splits(CustomConfig(root=str(root), group_regex=r"(day\d+)"))
    sides = [
        {part.name(index).split("/")[1].split("_")[0] for index in range(len(part))}
        for part in (splits.train, splits.val)
    ]
    assert not sides[0] & sides[1]
    assert (len(sides[0]), len(sides[1]), len(splits.val)) == (8, 2, 16)
    assert splits.notes[0] == "val is 2 of 10 groups (data.group_regex), 0.20 of the images, wanted 0.2"


@pytest.mark.parametrize(
    ("pattern", "words"), [("none(x)", "does not match ant/day0_0.png"), ("(day)", "makes 1 groups,")]
)
def test_patterns_that_make_no_groups(root, pattern, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        build_splits(CustomConfig(root=str(root), group_regex=pattern))


def test_a_wrong_expression_is_refused_at_once(root):
    with pytest.raises(ConfigError, match="is no regular expression"):
        compose("data=custom", f"data.root={root}", "data.group_regex=(day")
    assert compose("data=custom", f"data.root={root}", r"data.group_regex=(day\d+)").data.group_regex == r"(day\d+)"


def write_manifest(root, *, columns="path,label,person", rows=()):
    file = root / "labels.csv"
    file.write_text("\n".join([columns, *rows]) + "\n")
    return str(file)


def people(root):
    """Ten people of four photos of each class."""
    return [f"{name}/day{n // 4}_{n}.png,{name},p{n // 4}" for name in ("ant", "bee") for n in range(40)]


def test_a_manifest_is_split_by_a_column(root):
    file = write_manifest(root, rows=people(root))
    splits = build_splits(CsvConfig(file=file, group_column="person"))
    sides = [
        {part.name(i).split("/")[1].split("_")[0] for i in range(len(part))} for part in (splits.train, splits.val)
    ]
    assert not sides[0] & sides[1]
    assert splits.notes[0] == "val is 2 of 10 groups (data.group_column), 0.20 of the images, wanted 0.2"
    # the same groups by their paths make the same shares
    assert len(build_splits(CsvConfig(file=file, group_regex=r"(day\d+)")).val) == len(splits.val)


def test_groups_on_both_sides_of_a_split_of_ones_own_are_named(root):
    rows = [f"{row},{'val' if number % 40 >= 36 else 'train'}" for number, row in enumerate(people(root))]
    clean = write_manifest(root, columns="path,label,person,split", rows=rows)
    assert not any("groups" in line for line in build_splits(CsvConfig(file=clean, group_column="person")).warnings)
    rows[0] = rows[0].replace(",p0,train", ",p9,train")
    mixed = write_manifest(root, columns="path,label,person,split", rows=rows)
    warnings = build_splits(CsvConfig(file=mixed, group_column="person")).warnings
    assert "groups (data.group_column) that are in train and in val, 1 of them: p9" in warnings


@pytest.mark.parametrize(
    ("column", "rows", "words"),
    [
        ("preson", None, "did you mean data.group_column=person?"),
        ("label", None, "makes 2 groups, and none can go to val"),
        ("person", ["ant/day0_0.png,ant,", "bee/day0_0.png,bee,p1"], "line 2 has no group"),
    ],
)
def test_columns_that_make_no_groups(root, column, rows, words):
    file = write_manifest(root, rows=rows or people(root))
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        build_splits(CsvConfig(file=file, group_column=column))


def test_column_and_expression_exclude_each_other(root):
    file = write_manifest(root, rows=people(root))
    with pytest.raises(ConfigError, match=r"says the same as data\.group_column=person"):
        compose("data=csv", f"data.file={file}", "data.group_column=person", "data.group_regex=(p)")
