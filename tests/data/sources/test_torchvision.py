"""Tiny sets in the files' own formats, read by torchvision's own classes.

Where the library checks MD5 sums, which no made-up file can have, the sums in its tables are replaced by those of the
made-up files: the check itself still runs.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import TorchvisionDataConfig, TorchvisionSet
from cvtrain.data.sources.source import ArraySource, FileSource, Splits
from cvtrain.data.sources.torchvision import ARRAY_SETS, FILE_SETS, build_torchvision

RNG = np.random.default_rng(0)


def load(name: str, root: Path, **changes: Any) -> Splits:
    config = TorchvisionDataConfig(name=name, dataset=TorchvisionSet(name), root=str(root), **changes)
    return build_torchvision(config, reader=lambda path: np.asarray(Image.open(path)))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path: Path, array: np.ndarray) -> None:
    """The IDX format of MNIST: magic number, sizes as big-endian int32, bytes."""
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def luma(pixels: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])[..., None]


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = {"train": RNG.integers(0, 256, (40, 28, 28)), "t10k": RNG.integers(0, 256, (10, 28, 28))}
    for part, pixels in images.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(pixels)) % 10)
    splits = load(name, tmp_path, channels=1, val_fraction=0.25)
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (30, 10, 10)
    assert splits.classes == tuple(getattr(torchvision.datasets, folder).classes)
    assert isinstance(splits.val, ArraySource)
    assert splits.val.images.shape == (10, 28, 28, 1)
    row = int(splits.val.rows[3])
    assert splits.val.name(3) == f"{name}[train][{row}]"
    assert np.array_equal(splits.val.read(3)[..., 0], images["train"][row])
    assert splits.val.labels[3] == row % 10
    assert splits.test is not None and np.array_equal(splits.test.read(9)[..., 0], images["t10k"][9])
    rgb = load(name, tmp_path, channels=3).test
    assert rgb is not None
    assert rgb.read(9).shape == (28, 28, 3)
    assert np.array_equal(rgb.read(9)[..., 2], images["t10k"][9])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickled_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    library = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    key = "labels" if name == "cifar10" else "fine_labels"
    folder = tmp_path / library.base_folder
    folder.mkdir()
    train, test = [RNG.integers(0, 256, (16, 3, 32, 32), dtype=np.uint8) for _ in library.train_list], None
    for attribute in ("train_list", "test_list"):
        sums = []
        for number, (file, _) in enumerate(getattr(library, attribute)):
            pixels = (
                train[number] if attribute == "train_list" else RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
            )
            test = pixels
            labels = [row % 4 for row in range(len(pixels))]
            (folder / file).write_bytes(pickle.dumps({"data": pixels.reshape(len(pixels), -1), key: labels}))
            sums.append([file, md5(folder / file)])
        monkeypatch.setattr(library, attribute, sums)
    meta = folder / library.meta["filename"]
    meta.write_bytes(pickle.dumps({library.meta["key"]: ["plane", "car", "bird", "cat"]}))
    monkeypatch.setattr(library, "meta", {**library.meta, "md5": md5(meta)})

    splits = load(name, tmp_path, channels=3, val_fraction=0.25)
    assert splits.classes == ("plane", "car", "bird", "cat")
    count = 16 * len(train)
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (count * 3 // 4, count // 4, 4)
    assert isinstance(splits.train, ArraySource) and isinstance(splits.test, ArraySource)
    row = int(splits.train.rows[-1])
    assert np.array_equal(splits.train.read(len(splits.train) - 1), np.concatenate(train)[row].transpose(1, 2, 0))
    assert test is not None and np.array_equal(splits.test.images, test.transpose(0, 2, 3, 1))
    grey = load(name, tmp_path, channels=1).test
    assert isinstance(grey, ArraySource)
    assert np.array_equal(grey.images, luma(splits.test.images))

    (folder / library.test_list[0][0]).write_bytes(b"half a file")
    with pytest.raises(ConfigError, match=r"not complete in .*: a file is damaged"):
        load(name, tmp_path)


def test_svhn_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    (tmp_path / "SVHN").mkdir()
    pixels = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    digits = np.arange(20)[:, None] % 10 + 1  # the set writes 10 for the digit 0
    table = {}
    for split in ("train", "test"):
        path = tmp_path / f"SVHN/{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": digits})
        table[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    splits = load("svhn", tmp_path)
    assert splits.classes == tuple("0123456789")
    assert splits.test is not None
    assert np.array_equal(splits.test.read(5), pixels[..., 5])
    assert splits.test.labels.tolist() == (np.arange(1, 21) % 10).tolist()
    assert (len(splits.train), len(splits.val)) == (10, 10)  # two of each class: one to each split


def test_stl10_binary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (20, 96, 96, 3), dtype=np.uint8)
    library = torchvision.datasets.STL10
    for attribute in ("train_list", "test_list"):
        sums = []
        for file, _ in getattr(library, attribute):
            # Stored as channel, column, row; labels from 1.
            data = (np.arange(20) % 10 + 1).astype(np.uint8) if "_y" in file else pixels.transpose(0, 3, 2, 1)
            (folder / file).write_bytes(b"" if "unlabeled" in file else data.tobytes())
            sums.append([file, md5(folder / file)])
        monkeypatch.setattr(library, attribute, sums)
    splits = load("stl10", tmp_path)
    assert splits.classes[0] == "airplane" and len(splits.classes) == 10
    assert splits.test is not None
    assert np.array_equal(splits.test.read(13), pixels[13])
    assert splits.test.labels[13] == 3


def save_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4, 3), value, np.uint8)).save(path, quality=100)


def test_flowers102_has_its_own_three_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = tmp_path / "flowers-102"
    for number in range(1, 307):
        path = folder / f"jpg/image_{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    save_image(folder / "jpg/image_00205.jpg", 99)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(306) % 102 + 1})
    numbers = np.arange(1, 307)
    savemat(folder / "setid.mat", {"trnid": numbers[:102], "valid": numbers[102:204], "tstid": numbers[204:]})
    library = torchvision.datasets.Flowers102
    table = {
        kind: (file, "" if kind == "image" else md5(folder / file)) for kind, (file, _) in library._file_dict.items()
    }
    monkeypatch.setattr(library, "_file_dict", table)
    splits = load("flowers102", tmp_path)
    assert [len(part) for part in splits.parts().values()] == [102, 102, 102]
    assert len(splits.classes) == 102 and splits.classes[0] == "pink primrose"
    assert isinstance(splits.test, FileSource)
    assert splits.test.name(0) == "flowers-102/jpg/image_00205.jpg"
    assert splits.test.labels.tolist() == list(range(102))
    assert np.array_equal(splits.test.read(0), np.full((3, 4, 3), 99))
    assert splits.notes == ()


def test_oxford_pets_lists(tmp_path: Path) -> None:
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    pets = [("Abyssinian", 1, 1), ("beagle", 2, 2), ("Bombay", 3, 1)]
    for file, count in (("trainval", 5), ("test", 2)):
        rows = [f"{name}_{row} {label} {kind} 1" for name, label, kind in pets for row in range(count)]
        (folder / f"annotations/{file}.txt").write_text("\n".join(rows) + "\n")
    splits = load("oxford_iiit_pet", tmp_path)
    assert splits.classes == ("Abyssinian", "Beagle", "Bombay")
    assert [len(part) for part in splits.parts().values()] == [12, 3, 6]
    assert splits.test is not None
    assert splits.test.name(2) == "oxford-iiit-pet/images/beagle_0.jpg"
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_food101_lists(tmp_path: Path) -> None:
    folder = tmp_path / "food-101"
    (folder / "images").mkdir(parents=True)
    (folder / "meta").mkdir()
    for split, count in (("train", 10), ("test", 2)):
        lists = {name: [f"{name}/{split}{row}" for row in range(count)] for name in ("waffles", "apple_pie")}
        (folder / f"meta/{split}.json").write_text(json.dumps(lists))
    splits = load("food101", tmp_path)
    assert splits.classes == ("apple_pie", "waffles")
    assert [len(part) for part in splits.parts().values()] == [16, 4, 4]
    assert splits.test is not None
    assert [(splits.test.name(row), splits.test.labels[row]) for row in (0, 3)] == [
        ("food-101/images/waffles/test0.jpg", 1),
        ("food-101/images/apple_pie/test1.jpg", 0),
    ]


@pytest.mark.parametrize("below", ["", "imagenet/"])
def test_imagenet_layout(tmp_path: Path, below: str) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for wnid in ("n01440764", "n01443537"):
            for row in range(count):
                path = tmp_path / f"{below}{split}/{wnid}/{split}_{row}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    splits = load("imagenet", tmp_path)
    assert splits.classes == ("n01440764", "n01443537")
    assert [len(part) for part in splits.parts().values()] == [6, 2]


@pytest.mark.parametrize("name", [kind.value for kind in (*ARRAY_SETS, *FILE_SETS)])
def test_missing_set_names_its_files_and_the_setting(tmp_path: Path, name: str) -> None:
    open_set = {**ARRAY_SETS, **FILE_SETS}[TorchvisionSet(name)]
    with pytest.raises(ConfigError) as caught:
        load(name, tmp_path)
    problem = caught.value.problems[0]
    assert problem.key == "data.root"
    assert problem.rule == f"{name} is not complete in {tmp_path}: missing {', '.join(open_set.files)}"
    assert problem.remedy == "set data.download=true to fetch it, or put the files there by hand"


def test_missing_imagenet_says_where_to_unpack_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder train/ in .*/imagenet or .*\n.*imagenet/train/WNID/IMAGE"):
        load("imagenet", tmp_path)


def test_download_without_a_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    with pytest.raises(ConfigError, match=r"the download failed: network is unreachable\n  check the network"):
        load("mnist", tmp_path, download=True)
