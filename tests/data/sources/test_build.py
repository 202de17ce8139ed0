import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import DATA_CONFIGS, CustomConfig, DigitsConfig, FileDataConfig
from cvtrain.data.images.convert import to_channels
from cvtrain.data.images.reader import image_to_array
from cvtrain.data.sources.build import FILE_SOURCES, SOURCES, build_splits
from cvtrain.data.sources.source import ArraySource


def test_every_data_config_has_a_builder() -> None:
    assert {*SOURCES, *FILE_SOURCES} == set(DATA_CONFIGS.values())
    assert all(issubclass(config, FileDataConfig) for config in FILE_SOURCES)
    assert not any(issubclass(config, FileDataConfig) for config in SOURCES)


def test_digits_are_scaled_and_split_by_class() -> None:
    splits = build_splits(DigitsConfig(channels=1))
    theirs = load_digits()
    assert splits.classes == tuple("0123456789")
    assert (len(splits.train), len(splits.val), splits.test) == (1438, 359, None)
    counts = np.bincount(theirs.target)
    assert np.bincount(splits.val.labels).tolist() == [int(0.2 * count + 0.5) for count in counts]
    assert isinstance(splits.train, ArraySource) and isinstance(splits.val, ArraySource)
    rows = np.concatenate([splits.train.rows, splits.val.rows])
    assert sorted(rows) == list(range(1797))
    images = np.concatenate([splits.train.images, splits.val.images])
    values = np.array([0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255])  # of 0..16
    assert np.array_equal(images[..., 0], values[theirs.images[rows].astype(int)])
    assert np.array_equal(np.concatenate([splits.train.labels, splits.val.labels]), theirs.target[rows])
    assert splits.train.name(0) == f"digits[{splits.train.rows[0]}]"


def test_digits_in_three_channels_repeat_the_grey() -> None:
    grey, rgb = (build_splits(DigitsConfig(channels=channels)).val for channels in (1, 3))
    assert isinstance(grey, ArraySource) and isinstance(rgb, ArraySource)
    assert rgb.images.shape == (359, 8, 8, 3)
    assert np.array_equal(rgb.images, np.repeat(grey.images, 3, axis=3))


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_images_are_read_in_the_configured_channels(tmp_path: Path, channels: int) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for value, name in enumerate(("ants", "bees")):
            for row in range(count):
                path = tmp_path / f"{split}/{name}/{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (5, 4), (value, 10 * row, 200)).save(path)
    splits = build_splits(CustomConfig(root=str(tmp_path), channels=channels))
    copy = pickle.loads(pickle.dumps(splits.train))  # the reader travels with the source
    expected = image_to_array(Image.new("RGB", (5, 4), (1, 20, 200)), channels)
    assert expected.shape == (4, 5, channels)
    assert copy.name(5) == "train/bees/2.png"
    assert np.array_equal(copy.read(5), expected)


@pytest.mark.parametrize("shape", [(7, 5, 4, 3), (7, 5, 4, 1), (0, 5, 4, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_arrays_follow_the_rule_for_files(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], channels: int
) -> None:
    monkeypatch.setattr("cvtrain.data.images.convert._CHUNK", 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    converted = to_channels(images, channels)
    assert converted.shape == (*shape[:3], channels) and converted.dtype == np.uint8
    assert converted.flags.c_contiguous
    for image, expected in zip(converted, images, strict=True):
        assert np.array_equal(image, image_to_array(expected, channels))


def test_luma_of_every_primary_colour() -> None:
    images = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8).reshape(4, 1, 1, 3)
    assert to_channels(images, 1).ravel().tolist() == [76, 150, 29, 255]


def test_one_class_can_be_scored_and_not_trained_on(tmp_path):
    (tmp_path / "ants").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "ants" / f"{number}.png")
    assert build_splits(CustomConfig(root=str(tmp_path)), min_classes=1).classes == ("ants",)
    with pytest.raises(ConfigError, match="at least two classes, found 1: ants"):
        build_splits(CustomConfig(root=str(tmp_path)))
