"""Source `torchvision`: open sets by name, read through torchvision's own dataset classes.

Sets that come as arrays are held in memory; sets of files become paths, read by the configured reader. A set without a
val split of its own gives `val_fraction` of train to val; its test split stays untouched until the end.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import IMAGE_EXTENSIONS, TorchvisionDataConfig, TorchvisionSet
from cvtrain.data.images.convert import to_channels
from cvtrain.data.sources.classes import class_name
from cvtrain.data.sources.folder import splits_of_folder
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import ArraySource, FileSource, Splits, SplittableSource
from cvtrain.data.sources.splits import SplitSettings, complete_splits

Reader = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class OpenSet:
    """A set as torchvision stores it.

    Attributes:
        library_class: name in `torchvision.datasets`.
        splits: arguments of the class for each of our splits.
        files: what must be on disk, relative to data.root.
        subfolder: folder below data.root that the class takes as its root.
    """

    library_class: str
    splits: dict[str, dict[str, Any]]
    files: tuple[str, ...]
    subfolder: str = ""


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_IDX_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_STL10_FILES = ("train_X.bin", "train_y.bin", "unlabeled_X.bin", "test_X.bin", "test_y.bin")

ARRAY_SETS = {
    TorchvisionSet.mnist: OpenSet("MNIST", _TRAIN_FLAG, tuple(f"MNIST/raw/{name}" for name in _IDX_FILES)),
    TorchvisionSet.fashion_mnist: OpenSet(
        "FashionMNIST", _TRAIN_FLAG, tuple(f"FashionMNIST/raw/{name}" for name in _IDX_FILES)
    ),
    TorchvisionSet.cifar10: OpenSet(
        "CIFAR10",
        _TRAIN_FLAG,
        tuple(
            f"cifar-10-batches-py/{name}"
            for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
        ),
    ),
    TorchvisionSet.cifar100: OpenSet(
        "CIFAR100", _TRAIN_FLAG, tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta"))
    ),
    TorchvisionSet.svhn: OpenSet("SVHN", _TRAIN_TEST, ("SVHN/train_32x32.mat", "SVHN/test_32x32.mat"), "SVHN"),
    TorchvisionSet.stl10: OpenSet("STL10", _TRAIN_TEST, tuple(f"stl10_binary/{name}" for name in _STL10_FILES)),
}
FILE_SETS = {
    TorchvisionSet.flowers102: OpenSet(
        "Flowers102",
        {split: {"split": split} for split in ("train", "val", "test")},
        ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),
    ),
    TorchvisionSet.oxford_iiit_pet: OpenSet(
        "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
    ),
    TorchvisionSet.food101: OpenSet("Food101", _TRAIN_TEST, ("food-101/images", "food-101/meta")),
}
_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def build_torchvision(config: TorchvisionDataConfig, reader: Reader) -> Splits:
    """The splits of the set `config.dataset` below the folder `config.root`.

    Raises:
        ConfigError: the set is not there, or damaged, and may not or cannot be downloaded; it names the files.
    """
    root = Path(config.root).expanduser()
    if config.dataset is TorchvisionSet.imagenet:
        return _build_imagenet(config, root, reader)
    in_memory = config.dataset in ARRAY_SETS
    open_set = ARRAY_SETS[config.dataset] if in_memory else FILE_SETS[config.dataset]
    parts: dict[str, SplittableSource] = {}
    classes: tuple[str, ...] = ()
    for split, arguments in open_set.splits.items():
        dataset = _load(open_set, arguments, root, config)
        if in_memory:
            prefix = f"{config.dataset.value}[{split}]"
            parts[split] = _array_source(dataset, prefix, config.channels)
        else:
            parts[split] = _file_source(dataset, root, reader)
        classes = classes or _class_names(dataset, config.dataset, parts[split].labels)
    return complete_splits(
        parts,
        classes=classes,
        settings=SplitSettings.of(config),
        key="data.dataset",
    )


def _load(open_set: OpenSet, arguments: dict[str, Any], root: Path, config: TorchvisionDataConfig) -> Any:
    """The library's dataset of one split, downloaded first if that is allowed."""
    from torchvision import datasets

    factory = getattr(datasets, open_set.library_class)
    try:
        return factory(root / open_set.subfolder, download=config.download, **arguments)
    # The library raises RuntimeError for what is not there; URLError and what else a network gives are OSErrors.
    except (RuntimeError, OSError) as error:
        missing = [name for name in open_set.files if not (root / name).exists()]
        where = root.absolute()
        state = f"missing {', '.join(missing)}" if missing else f"a file is damaged ({', '.join(open_set.files)})"
        failure = f"; the download failed: {error}" if config.download else ""
        raise ConfigError(
            key="data.root",
            value=config.root,
            rule=f"{config.dataset.value} is not complete in {where}: {state}{failure}",
            remedy=("check the network" if config.download else "set data.download=true to fetch it")
            + ", or put the files there by hand",
        ) from error


def _array_source(dataset: Any, prefix: str, channels: int) -> ArraySource:
    images = np.asarray(dataset.data)
    if images.ndim == 3:  # mnist: (N, H, W)
        images = images[..., None]
    elif images.shape[1] == 3:  # svhn, stl10: (N, 3, H, W)
        images = images.transpose(0, 2, 3, 1)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    return ArraySource(images=to_channels(images, channels), labels=labels.astype(np.int64), prefix=prefix)


def _file_source(dataset: Any, root: Path, reader: Reader) -> FileSource:
    # torchvision (0.21 to 0.29) has no public list of files; these two names are all that its file sets use.
    files = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images
    base = str(root.absolute())
    return FileSource(
        root=base,
        paths=PathTable.from_iterable(os.path.relpath(file, base).replace(os.sep, "/") for file in files),
        labels=np.asarray(dataset._labels, dtype=np.int64),
        reader=reader,
    )


def _class_names(dataset: Any, name: TorchvisionSet, labels: np.ndarray) -> tuple[str, ...]:
    """The library's names; where it has none (svhn, flowers102 of older versions), the ids."""
    names = getattr(dataset, "classes", None) or (_STL10_CLASSES if name is TorchvisionSet.stl10 else None)
    if names is None:
        return tuple(str(label) for label in range(int(labels.max()) + 1))
    return tuple(class_name(text) for text in names)


def _build_imagenet(config: TorchvisionDataConfig, root: Path, reader: Reader) -> Splits:
    """train/ and val/ with a folder per WordNet id, in `root/imagenet` or in `root` itself.

    The ids of the 1,000 sorted WordNet ids are those of torchvision's pretrained weights.
    """
    candidates = [root / "imagenet", root]
    found = next((folder for folder in candidates if (folder / "train").is_dir()), None)
    if found is None:
        raise ConfigError(
            key="data.root",
            value=config.root,
            rule=f"no folder train/ in {' or '.join(str(folder.absolute()) for folder in candidates)}",
            remedy="ImageNet cannot be downloaded without an account at image-net.org: unpack it as "
            "imagenet/train/WNID/IMAGE and imagenet/val/WNID/IMAGE",
        )
    return splits_of_folder(
        str(found),
        extensions=IMAGE_EXTENSIONS,
        reader=reader,
        settings=SplitSettings.of(config),
    )
