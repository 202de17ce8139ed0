"""Classes that are empty, small, missing in a split, or named confusingly."""

from dataclasses import replace

import numpy as np
import pytest
from made_sets import checked

from cvtrain.check.classes import class_findings
from cvtrain.check.measure import CheckedImages


def found(tmp_path, classes, counts, empty=()):
    parts = {
        split: {f"{split}{label}_{number}.jpg": label for label, count in enumerate(row) for number in range(count)}
        for split, row in counts.items()
    }
    _, splits = checked(tmp_path, parts, classes)
    splits = replace(splits, empty_classes=empty)
    return [(each.check, each.detail) for each in class_findings(CheckedImages(splits), splits)]


def test_sound_classes(tmp_path):
    assert found(tmp_path, ("a", "b"), {"train": (10, 12), "val": (2, 3)}) == []


def test_counts(tmp_path):
    counts = {"train": (10, 9, 0, 20), "val": (2, 0, 1, 1), "test": (1, 1, 0, 1)}
    assert found(tmp_path, ("a", "b", "c", "d"), counts, empty=("e\x1b",)) == [
        ("empty_class", r"e\x1b has no images"),
        ("few_images", "b: 9 in train, 0 in val, 1 in test"),
        ("unscored_class", "b: 9 in train, 0 in val, 1 in test"),
        ("untrained_class", "c: 0 in train, 1 in val, 0 in test"),
    ]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("a", "A "), [("similar_names", "'a' / 'A '")]),
        (("1", "2", "10"), [("text_order", "as text 10 comes before 2; class ids here follow the numbers")]),
        (("c10", "c2"), [("text_order", "as text c10 comes before c2; class ids here follow the text")]),
        (("c02", "c10"), []),
    ],
)
def test_names(tmp_path, classes, expected):
    counts = {split: tuple(np.full(len(classes), 10)) for split in ("train", "val")}
    assert found(tmp_path, classes, counts) == expected
