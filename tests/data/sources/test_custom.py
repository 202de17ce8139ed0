import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import DatasetConfig
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.sources.custom import build_dataset
from cvtrain.data.sources.source import Splits


class Birds:
    """Twelve images of three classes, item i filled with the value i; labels by one pass."""

    image_kind = "array"

    def __init__(self, split: str = "all", count: int = 12) -> None:
        self.split = split
        self.count = count
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        pixels = np.full((2, 3, 3), index, np.uint8)
        kinds = {"array": lambda: pixels, "pil": lambda: Image.fromarray(pixels),
                 "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1)}  # fmt: skip
        return kinds[self.image_kind](), index % 3


class PilBirds(Birds):
    image_kind = "pil"


class TensorBirds(Birds):
    image_kind = "tensor"


class NamedBirds(Birds):
    """Has `targets` and `classes`; the val split numbers its classes the other way round."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.targets = [index % 3 for index in range(12)]
        self.classes = ["owl", "robin", "wren"] if split == "train" else ["wren", "robin", "owl"]


class LabelledBirds(Birds):
    @property
    def labels(self) -> torch.Tensor:
        return torch.arange(self.count) % 3


def variant(**members: Any) -> type:
    return type("Odd", (Birds,), members)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module `aviary` that the open door can import."""
    module = types.ModuleType("aviary")
    for kind in (Birds, PilBirds, TensorBirds, NamedBirds, LabelledBirds):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "aviary", module)
    yield module


def build(name: str, **changes: Any) -> Splits:
    return build_dataset(DatasetConfig(target=f"aviary.{name}", **{"train_kwargs": {"split": "train"}, **changes}))


@pytest.mark.parametrize("name", ["Birds", "PilBirds", "TensorBirds"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_kind_become_arrays(module: types.ModuleType, name: str, channels: int) -> None:
    splits = build(name, channels=channels, val_kwargs={"split": "val"})
    image = splits.train.read(7)
    assert image.shape == (2, 3, channels) and image.dtype == np.uint8
    assert (image == 7).all()
    assert splits.train.name(7) == f"{name}[train][7]"
    assert splits.classes == ("0", "1", "2")


def test_labels_come_from_one_pass_unless_an_attribute_has_them(module: types.ModuleType) -> None:
    splits = build("Birds", val_fraction=0.25)
    assert np.bincount(splits.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(splits.val.labels).tolist() == [1, 1, 1]
    assert splits.notes[0].startswith("train: class ids were read by one pass over all items")
    for name in ("NamedBirds", "LabelledBirds"):
        splits = build(name, val_kwargs={"split": "val"})
        assert splits.notes == ("there is no test split: val selects, and nothing else is scored",)
        assert splits.train.labels.tolist() == [0, 1, 2] * 4
        assert splits.train.dataset.reads <= 2  # the check of the first item


def test_classes_are_matched_by_name(module: types.ModuleType) -> None:
    splits = build("NamedBirds", val_kwargs={"split": "val"}, test_kwargs={"split": "test"})
    assert splits.classes == ("owl", "robin", "wren")
    assert splits.train.labels.tolist() == [0, 1, 2] * 4
    assert splits.val.labels.tolist() == [2, 1, 0] * 4
    assert splits.test is not None and splits.test.labels.tolist() == [2, 1, 0] * 4


def test_arguments_of_a_split_come_over_those_of_all(module: types.ModuleType) -> None:
    splits = build("Birds", kwargs={"count": 9}, val_kwargs={"split": "val", "count": 6})
    assert (len(splits.train), len(splits.val)) == (9, 6)
    assert splits.val.dataset.split == "val"


def test_only_train_is_made_unless_the_other_splits_have_arguments(module: types.ModuleType) -> None:
    splits = build("Birds", train_kwargs={}, val_fraction=0.25)
    assert splits.train.dataset.split == "all"
    assert (len(splits.train), len(splits.val), splits.test) == (9, 3, None)


def test_image_that_cannot_be_used_is_named(module: types.ModuleType) -> None:
    def item(self: Birds, index: int) -> tuple[Any, int]:
        return (np.zeros((2, 2), np.uint8) if index < 5 else np.zeros((2, 2), np.int64)), index % 3

    module.Odd = variant(__getitem__=item)
    splits = build("Odd", val_kwargs={"split": "val"})
    with pytest.raises(BadImageError, match=r"Odd\[val\]\[7\].*pixels of type int64"):
        splits.val.read(7)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"__len__": lambda self: 0}, "gives an empty Odd for train"),
        ({"__getitem__": lambda self, index: {"image": 1, "label": 2}},
         r"Odd\[0\] for train is a dict of 2; expected a pair \(image, class id\)"),
        ({"__getitem__": lambda self, index: (1, 2, 3)}, r"is a tuple of 3; expected a pair"),
        ({"__getitem__": lambda self, index: (1, "owl")}, "Odd's items for train: class ids must be integers .*'owl'"),
        ({"__getitem__": lambda self, index: (1, [0, 1])}, r"the label \[0, 1\] is no class id"),
        ({"__getitem__": lambda self, index: ("bird.jpg", index % 3)}, "a PIL image, an array or a tensor, not str"),
        ({"targets": [0, 1]}, r"Odd.targets for train has shape \(2,\), but the dataset 12 items"),
        ({"targets": [-1] * 12}, "class ids must be integers from 0 up, found -1, -1, -1"),
        ({"labels": [0.5] * 12}, "class ids must be integers from 0 up, found 0.5"),
        ({"classes": ["owl", "wren"]}, "has class id 2, but `classes` only 2 names"),
        ({"classes": ["owl", "owl", "wren"]}, "names a class twice"),
    ],
)  # fmt: skip
def test_wrong_datasets_are_errors_of_the_setting(
    module: types.ModuleType, members: dict[str, Any], message: str
) -> None:
    module.Odd = variant(**members)
    with pytest.raises(ConfigError, match=message) as caught:
        build("Odd")
    assert (caught.value.problems[0].key, caught.value.problems[0].value) == ("data.target", "aviary.Odd")


def test_iterable_datasets_are_refused(module: types.ModuleType) -> None:
    module.stream = lambda split: iter([])
    with pytest.raises(ConfigError, match=r"which lacks __len__ or __getitem__\n.*map-style"):
        build("stream")


def test_target_that_is_no_class_is_refused(module: types.ModuleType) -> None:
    module.number = 3
    with pytest.raises(ConfigError, match="is of type int, not a class or function"):
        build("number")


def test_val_class_that_train_lacks_is_an_error(module: types.ModuleType) -> None:
    numbers = {"train": [0, 1, 2] * 4, "val": [0, 1, 2, 3] * 3}
    module.Odd = variant(targets=property(lambda self: numbers[self.split]))
    with pytest.raises(ConfigError, match="val has images of classes that train has none of: 3"):
        build("Odd", val_kwargs={"split": "val"})


def test_errors_of_the_users_class_keep_their_type(module: types.ModuleType) -> None:
    def fail(self: Birds, index: int) -> None:
        raise KeyError("my bug")

    module.Odd = variant(__getitem__=fail)
    with pytest.raises(KeyError, match="my bug"):
        build("Odd")
    with pytest.raises(TypeError, match="colour"):
        build("Birds", kwargs={"colour": "red"})
