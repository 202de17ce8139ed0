"""`data.exclude`: images that are left out as if they were not there."""

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CsvConfig, CustomConfig
from cvtrain.data.sources.build import build_splits


@pytest.fixture
def root(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path


def names(splits):
    return {split: {part.name(index) for index in range(len(part))} for split, part in splits.parts().items()}


def listed(root, *rows, header="path,reason"):
    file = root / "quarantine.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(file)


def test_folder_without_the_excluded(root):
    photos = root / "photos"
    everything = names(build_splits(CustomConfig(root=str(photos))))
    file = listed(root, "ant/3.png,copy", "bee/0.png,copy", "bee/99.png,copy")
    splits = build_splits(CustomConfig(root=str(photos), exclude=file))
    assert set().union(*names(splits).values()) == set().union(*everything.values()) - {"ant/3.png", "bee/0.png"}
    assert splits.left_out == ("left out 2 (data.exclude): ant/3.png, bee/0.png",)
    assert splits.warnings == (f"data.exclude={file} names 1 images that are not there: bee/99.png",)
    # As if they were not there: the split of a folder that never had them.
    (photos / "ant" / "3.png").unlink()
    (photos / "bee" / "0.png").unlink()
    assert names(build_splits(CustomConfig(root=str(photos)))) == names(splits)


def test_manifest_without_the_excluded(root):
    rows = [f"{name}/{number}.png,{name}" for name in ("ant", "bee") for number in range(10)]
    (root / "list.csv").write_text("\n".join(["path,label", *rows, "bee/missing.png,bee"]), encoding="utf-8")
    settings = {"file": str(root / "list.csv"), "root": str(root / "photos")}
    with pytest.raises(ConfigError, match="missing"):
        build_splits(CsvConfig(**settings))
    file = listed(root, "bee/missing.png,unreadable", "'=x.png,copy", "ant/1.png,copy")
    splits = build_splits(CsvConfig(**settings, exclude=file))
    assert sum(map(len, splits.parts().values())) == 19
    assert splits.warnings == (f"data.exclude={file} names 1 images that are not there: =x.png",)


def test_an_empty_list_excludes_nothing(root):
    assert (
        sum(map(len, build_splits(CustomConfig(root=str(root / "photos"), exclude=listed(root))).parts().values()))
        == 20
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: str(root / "none.csv"), "no such file"),
        (lambda root: str(root), "is a folder, not a file"),
        (lambda root: listed(root, "1.png", header="image"), "no such column"),
        (lambda root: listed(root, header=""), "no such column"),
    ],
)
def test_wrong_lists_are_named(root, make, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build_splits(CustomConfig(root=str(root / "photos"), exclude=make(root)))
    assert caught.value.problems[0].key == "data.exclude"


def test_classes_that_only_val_has(root):
    photos = root / "photos"
    (photos / "train").mkdir()
    (photos / "val").mkdir()
    for name in ("ant", "bee"):
        (photos / name).rename(photos / "train" / name)
    (photos / "train" / "empty").mkdir()
    (photos / "val" / "wasp").mkdir()
    Image.new("L", (4, 4)).save(photos / "val" / "wasp" / "w.png")
    with pytest.raises(ConfigError, match="wasp"):
        build_splits(CustomConfig(root=str(photos)))
    splits = build_splits(CustomConfig(root=str(photos)), allow_untrained=True)
    assert (splits.classes, splits.empty_classes) == (("ant", "bee", "wasp"), ("empty",))
    assert splits.val.labels.tolist() == [2]
