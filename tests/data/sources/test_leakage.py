"""Exact copies across splits: found by size and bytes, warned of, refused, or left out of val."""

import os

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.compose import compose
from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CustomConfig, OnLeakage, QuickCheck
from cvtrain.data.sources import leakage
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.digest import dataset_digest, describe_changes
from cvtrain.data.sources.leakage import Leak, find_leaks, leak_warnings


@pytest.fixture
def root(tmp_path):
    """Eight distinct pictures of each class in train, four in val and test."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 6), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.bmp")
    return tmp_path


def copy(root, source, target):
    (root / target).write_bytes((root / source).read_bytes())


def names_of(splits, leaks):
    parts = splits.parts()
    return [(parts[leak.split].name(leak.index), parts[leak.partner_split].name(leak.partner)) for leak in leaks]


def test_copies_are_found_among_files_of_one_size(root):
    splits = build_splits(CustomConfig(root=str(root)))
    assert find_leaks(splits) == []
    copy(root, "train/ant/3.bmp", "val/ant/1.bmp")
    copy(root, "train/ant/3.bmp", "val/bee/2.bmp")  # under another label
    copy(root, "val/bee/0.bmp", "test/bee/0.bmp")
    copy(root, "train/bee/5.bmp", "test/ant/3.bmp")
    copy(root, "train/ant/0.bmp", "train/ant/1.bmp")  # within a split
    copy(root, "test/ant/0.bmp", "test/ant/1.bmp")
    leaks = find_leaks(splits)
    assert isinstance(leaks[0], Leak)
    assert names_of(splits, leaks) == [
        ("val/ant/1.bmp", "train/ant/3.bmp"),
        ("val/bee/0.bmp", "test/bee/0.bmp"),
        ("val/bee/2.bmp", "train/ant/3.bmp"),
        ("test/ant/3.bmp", "train/bee/5.bmp"),
    ]
    (val_train, val_test, test_train) = leak_warnings(CustomConfig(root=str(root)), splits)
    assert val_train.startswith(
        "2 of 8 images of val are exact copies of images of train, 1 of them under another label: "
        "val/ant/1.bmp = train/ant/3.bmp, val/bee/2.bmp = train/ant/3.bmp. data.on_leakage=drop_val"
    )
    assert val_test.startswith("1 of 8 images of val are exact copies of images of test")
    assert test_train.startswith("1 of 8 images of test are exact copies of images of train")


def test_found_copies_are_those_of_all_pairs(root):
    rng = np.random.default_rng(1)
    files = sorted(root.rglob("*.bmp"))
    for file in files:
        file.write_bytes(bytes(rng.integers(0, 2, 2, dtype=np.uint8)) * (600 + int(rng.integers(2))))
    splits = build_splits(CustomConfig(root=str(root)))
    content = {
        split: [(root / part.name(row)).read_bytes() for row in range(len(part))]
        for split, part in splits.parts().items()
    }
    expected = [
        (split, row)
        for split, others in (("val", ("train", "test")), ("test", ("train",)))
        for row, data in enumerate(content[split])
        if any(data in content[other] for other in others)
    ]
    assert [(leak.split, leak.index) for leak in find_leaks(splits)] == expected


def test_files_of_sizes_of_their_own_are_not_opened(root, monkeypatch):
    opened = []
    read = leakage._digest
    monkeypatch.setattr(leakage, "_digest", lambda path, *, tail: opened.append((path, tail)) or read(path, tail=tail))
    for number, file in enumerate(sorted(root.rglob("*.bmp"))):
        file.write_bytes(b"x" * (1500 + number))
    splits = build_splits(CustomConfig(root=str(root)))
    assert (find_leaks(splits), opened) == ([], [])
    (root / "val/ant/0.bmp").write_bytes(b"y" + (root / "train/ant/0.bmp").read_bytes()[1:])
    assert find_leaks(splits) == []
    assert [tail for _, tail in opened] == [True, True, False, False]  # the last bytes, then the whole files


def test_a_warning_is_not_worth_opening_too_many_files(root, monkeypatch):
    splits = build_splits(CustomConfig(root=str(root)))
    assert find_leaks(splits, most_opened=31) is None
    monkeypatch.setattr(leakage, "MOST_OPENED", 31)
    copy(root, "train/ant/3.bmp", "val/ant/1.bmp")
    assert leak_warnings(CustomConfig(root=str(root)), splits) == []
    with pytest.raises(ConfigError, match=r"1 of 8 images of val are exact copies of images of train"):
        leak_warnings(CustomConfig(root=str(root), on_leakage=OnLeakage.error), splits)


def test_copies_are_left_out_of_val(root):
    config = CustomConfig(root=str(root), on_leakage=OnLeakage.drop_val)
    clean = build_splits(config)
    copy(root, "train/ant/3.bmp", "val/ant/1.bmp")
    copy(root, "test/bee/0.bmp", "val/bee/0.bmp")
    copy(root, "train/bee/5.bmp", "test/ant/3.bmp")
    splits = build_splits(config)
    assert [len(part) for part in splits.parts().values()] == [16, 6, 8]
    assert {splits.val.name(row) for row in range(6)} == {clean.val.name(row) for row in range(8)} - {
        "val/ant/1.bmp",
        "val/bee/0.bmp",
    }
    assert splits.warnings[0].startswith(
        "left out of val (data.on_leakage=drop_val): 1 of 8 images of val are exact copies of images of train"
    )
    assert [line[:24] for line in leak_warnings(config, splits)] == ["1 of 8 images of test ar"]
    # the same images at a resume
    again = build_splits(config)
    assert describe_changes(dataset_digest(splits), dataset_digest(again)) == ""
    # and all of them for `cvtrain check`
    assert len(build_splits(config, allow_untrained=True).val) == 8


def test_nothing_is_left_of_val(root):
    for name in ("ant", "bee"):
        for number in range(4):
            copy(root, f"train/{name}/{number}.bmp", f"val/{name}/{number}.bmp")
    with pytest.raises(ConfigError, match=r"nothing of val would be left: 8 of 8 images of val"):
        build_splits(CustomConfig(root=str(root), on_leakage=OnLeakage.drop_val))
    off = CustomConfig(root=str(root), check=QuickCheck.off)
    assert leak_warnings(off, build_splits(off)) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_cannot_be_read_is_no_copy(root):
    copy(root, "train/ant/3.bmp", "val/ant/1.bmp")
    (root / "val/ant/1.bmp").chmod(0)
    assert find_leaks(build_splits(CustomConfig(root=str(root)))) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.check=off", "data.on_leakage=error"], r"has no effect with data\.check=off"),
        (["data.on_leakage=drop"], r"data\.on_leakage=drop"),
    ],
)
def test_settings_that_cannot_be(root, words, message):
    with pytest.raises(ConfigError, match=message):
        compose("data=custom", f"data.root={root}", *words)
