import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import HuggingFaceConfig
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.sources.huggingface import build_huggingface
from cvtrain.data.sources.source import Splits

datasets = pytest.importorskip("datasets")

NAMES = ["ants", "bees", "wasps"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((3, 4, 3), value, np.uint8))


def table(count: int, labels: list[Any] | None = None, feature: Any = None) -> Any:
    """`count` images, image i filled with the value i."""
    return datasets.Dataset.from_dict(
        {"image": [picture(row) for row in range(count)], "label": labels or [row % 3 for row in range(count)]},
        features=datasets.Features({"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=NAMES)}),
    )


def save(folder: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def load(path: str, **changes: Any) -> Splits:
    return build_huggingface(HuggingFaceConfig(path=path, **changes))


def test_set_saved_to_disk(tmp_path: Path) -> None:
    path = save(tmp_path / "saved", train=table(12), validation=table(6), test=table(3))
    splits = load(path)
    assert splits.classes == ("ants", "bees", "wasps")
    assert [len(part) for part in splits.parts().values()] == [12, 6, 3]
    assert splits.val.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(splits.train.read(7), np.full((3, 4, 3), 7))
    assert splits.val.name(4) == f"{path}[validation][4]"
    assert splits.notes == () and splits.warnings == ()


def test_single_set_saved_to_disk_is_split(tmp_path: Path) -> None:
    table(12).save_to_disk(tmp_path / "saved")
    splits = load(str(tmp_path / "saved"), val_fraction=0.25, channels=1)
    assert np.bincount(splits.train.labels).tolist() == [3, 3, 3]
    assert np.bincount(splits.val.labels).tolist() == [1, 1, 1]
    values = [int(part.read(row)[0, 0, 0]) for part in (splits.train, splits.val) for row in range(len(part))]
    assert sorted(values) == list(range(12))
    assert splits.val.read(0).shape == (3, 4, 1)
    assert pickle.loads(pickle.dumps(splits.val)).read(1).tolist() == splits.val.read(1).tolist()


def test_image_folder_and_parquet(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for value, name in enumerate(NAMES):
            for row in range(count):
                path = tmp_path / f"photos/{split}/{name}/{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(value * 10 + row).save(path)
    splits = load(str(tmp_path / "photos"))
    assert splits.classes == ("ants", "bees", "wasps")
    assert [len(part) for part in splits.parts().values()] == [6, 3, 3]
    assert splits.test is not None
    assert [int(splits.test.read(row)[0, 0, 0]) for row in range(3)] == [10 * label for label in splits.test.labels]

    (tmp_path / "parquet").mkdir()
    table(9).to_parquet(tmp_path / "parquet/train.parquet")
    splits = load(str(tmp_path / "parquet"))
    assert splits.classes == ("ants", "bees", "wasps")
    assert [len(part) for part in splits.parts().values()] == [6, 3]


def test_labels_that_are_names_match_across_splits(tmp_path: Path) -> None:
    text = datasets.Value("string")
    path = save(
        tmp_path / "saved",
        train=table(3, ["wasps", "bees", "ants"], text),
        validation=table(2, ["wasps", "bees"], text),
    )
    splits = load(path)
    assert splits.classes == ("ants", "bees", "wasps")
    assert splits.train.labels.tolist() == [2, 1, 0]
    assert splits.val.labels.tolist() == [2, 1]
    assert splits.warnings == ("classes without images in val: ants",)


def test_labels_that_are_numbers_are_in_number_order(tmp_path: Path) -> None:
    number = datasets.Value("int64")
    path = save(tmp_path / "saved", train=table(3, [10, 9, 7], number), val=table(2, [9, 10], number))
    splits = load(path)
    assert splits.classes == ("7", "9", "10")
    assert splits.train.labels.tolist() == [2, 1, 0]
    assert splits.val.labels.tolist() == [1, 2]


def test_test_split_without_labels_is_left_out(tmp_path: Path) -> None:
    path = save(tmp_path / "saved", train=table(6), val=table(3), test=table(3, [-1, -1, -1]))
    assert load(path).test is None
    with pytest.raises(ConfigError, match="3 images of split test have no label"):
        load(path, test_split="test")


def test_damaged_image_is_named(tmp_path: Path) -> None:
    data = [{"bytes": b"\xff\xd8 no jpeg", "path": "wasp.jpg"}, None]
    encoded = datasets.Dataset.from_dict(
        {"image": data, "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}),
    )
    splits = load(save(tmp_path / "saved", train=encoded, val=table(2)))
    with pytest.raises(BadImageError, match=r"saved\[train\]\[0\]"):
        splits.train.read(0)
    with pytest.raises(BadImageError, match="the row has no image"):
        splits.train.read(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "fit"}, "data.train_split=fit: .* has no such split\n  it has train, val"),
        ({"val_split": "dev"}, "data.val_split=dev: .* has no such split"),
        ({"image_column": "photo"}, "data.image_column=photo: .* has no such column\n  it has image, label"),
        ({"label_column": "class"}, "data.label_column=class: .* has no such column"),
        ({"image_column": "label"}, "data.image_column=label: holds ClassLabel.*, not images"),
        ({"label_column": "image"}, "data.label_column=image: holds .*; classes must be names or whole numbers"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = save(tmp_path / "saved", train=table(6), val=table(3))
    with pytest.raises(ConfigError, match=message):
        load(path, **changes)


def test_hub_is_not_asked_without_download(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    before = (dict(os.environ), datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*OfflineModeIsEnabled.*\n.*data.download=true once"):
        load("cvtrain-tests/no-such-set")
    assert (dict(os.environ), datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE) == before


def test_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"uv sync --extra hf, or pip install datasets"):
        load("anything")
