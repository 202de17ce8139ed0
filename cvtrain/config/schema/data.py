"""Config of group `data`: where images and labels come from and how they become batches."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Dict, List, Optional, Tuple, Union

from cvtrain.config.schema.fields import required, setting

# torchvision.datasets.folder.IMG_EXTENSIONS, so that counts agree with ImageFolder's.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Resize(str, Enum):
    """Resize to a square, for evaluation and for training without a random crop."""

    resize_crop = "resize_crop"
    squash = "squash"
    pad = "pad"


class Interpolation(str, Enum):
    """Kernel of the evaluation resize, antialiased."""

    auto = "auto"
    bilinear = "bilinear"
    bicubic = "bicubic"


class Balance(str, Enum):
    none = "none"
    class_weights = "class_weights"
    oversample = "oversample"


class Normalize(str, Enum):
    auto = "auto"
    weights = "weights"
    data = "data"


class Reader(str, Enum):
    pillow = "pillow"
    opencv = "opencv"
    skimage = "skimage"
    torchvision = "torchvision"


class DataCache(str, Enum):
    """Storage of decoded images."""

    auto = "auto"
    none = "none"
    ram = "ram"
    disk = "disk"


class DeviceCache(str, Enum):
    """Storage of whole splits on the device."""

    auto = "auto"
    always = "always"
    never = "never"


class OnBadImage(str, Enum):
    error = "error"
    skip = "skip"


class QuickCheck(str, Enum):
    """A look for copies across splits before training."""

    quick = "quick"
    off = "off"


class OnLeakage(str, Enum):
    warn = "warn"
    error = "error"
    drop_val = "drop_val"


class TorchvisionSet(str, Enum):
    mnist = "mnist"
    fashion_mnist = "fashion_mnist"
    cifar10 = "cifar10"
    cifar100 = "cifar100"
    svhn = "svhn"
    stl10 = "stl10"
    flowers102 = "flowers102"
    oxford_iiit_pet = "oxford_iiit_pet"
    food101 = "food101"
    imagenet = "imagenet"


# Settings of the kinds of data that are paths on this machine.
PATH_SETTINGS = ("root", "file", "exclude")


@dataclass
class DataConfig:
    """Settings of every source of images."""

    name: str = required("name of the source, part of the run folder's name")
    image_size: int = setting(224, "side of the square image that the model sees, in pixels", at_least=1, at_most=8192)
    channels: int = setting(3, "3: RGB; 1: grey (ITU-R 601 luma)", choices=(1, 3))
    batch_size: int = setting(32, "images per optimizer step, over all processes and micro-batches", at_least=1)
    eval_batch_size: Optional[int] = setting(None, "images per evaluation batch; null: batch_size", at_least=1)
    num_workers: Union[int, str] = setting(
        "auto", "processes that read and augment images; 0: none, auto: by the number of cores, the device and the data"
    )
    prefetch_batches: int = setting(2, "batches that each worker prepares ahead", at_least=1)
    device_cache: DeviceCache = setting(
        DeviceCache.auto,
        "train and val whole on the device as uint8, where nothing augments them one by one: auto (on a GPU, if they "
        "take at most a quarter of its free memory), always, never",
    )
    resize: Resize = setting(
        Resize.resize_crop,
        "evaluation resize: resize_crop (short side, then centre crop), squash (aspect lost), pad (letterbox)",
    )
    crop_fraction: Optional[float] = setting(
        None,
        "resize_crop: image_size / resized short side, so 0.875 resizes to 256 for a 224 crop; null: what the "
        "pretrained weights were evaluated with, else 0.875",
        above=0,
        at_most=1,
    )
    interpolation: Interpolation = setting(
        Interpolation.auto,
        "kernel of the evaluation resize: bilinear, bicubic, or auto: what the pretrained weights were evaluated with, "
        "else bilinear",
    )
    balance: Balance = setting(
        Balance.none,
        "class imbalance: none, class_weights (in the loss) or oversample (rare classes sampled more often)",
    )
    val_fraction: float = setting(
        0.2, "share of each class set aside for validation where the source has no val split", above=0, below=1
    )
    test_fraction: Optional[float] = setting(
        None,
        "share of each class set aside for test where the source has no test split; null: there is no test then",
        above=0,
        below=1,
    )
    fold: Optional[str] = setting(
        None,
        "i/k: val is fold i, from 0, of k folds of the images of train and val, such as 0/5; null: the source's own "
        "val split, or val_fraction",
    )
    split_seed: int = setting(0, "seed of the splits that are made; the same on every machine", at_least=0)
    normalize: Normalize = setting(
        Normalize.auto,
        "statistics: weights (the pretrained weights' own), data (mean and std below), auto (weights if pretrained)",
    )
    mean: List[float] = setting([0.485, 0.456, 0.406], "mean per channel, of values in 0..1", at_least=0, at_most=1)
    std: List[float] = setting([0.229, 0.224, 0.225], "standard deviation per channel, of values in 0..1", above=0)


@dataclass
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 handwritten digits of 8x8, embedded: no download."""

    name: str = "digits"


@dataclass
class DecodedDataConfig(DataConfig):
    """Sources whose images are decoded as they are needed."""

    on_bad_image: OnBadImage = setting(
        OnBadImage.error, "an image that cannot be decoded: error stops the run, skip leaves it out and lists it"
    )
    alpha_color: List[int] = setting(
        [255, 255, 255], "RGB colour behind transparent pixels, 0..255", at_least=0, at_most=255
    )
    bit_depth: int = setting(
        16, "bits that the values of 16-bit images use, such as 12 of many cameras and X-rays", at_least=8, at_most=16
    )


@dataclass
class FileDataConfig(DecodedDataConfig):
    """Sources whose images are files."""

    root: str = required("folder of the images")
    reader: Reader = setting(Reader.opencv, "library that decodes: opencv (fastest), pillow, skimage or torchvision")
    max_image_pixels: int = setting(
        178_956_970, "images with more pixels than this count as bad, against decompression bombs", at_least=1
    )
    check: QuickCheck = setting(
        QuickCheck.quick,
        "before training: quick (files with the same bytes in two splits), or off; cvtrain check sees more",
    )
    on_leakage: OnLeakage = setting(
        OnLeakage.warn,
        "images of val or test whose file is in train, too: warn, error ends the command, drop_val leaves those of val "
        "out",
    )
    cache: DataCache = setting(
        DataCache.auto,
        "images decoded once, at the size that data.resize needs: ram, disk (shared between runs), auto (by room), or "
        "none, which also trains on full-size images",
    )
    cache_dir: Optional[str] = setting(
        None, "folder of the caches on disk; null: cvtrain in ~/.cache or in XDG_CACHE_HOME"
    )
    cache_limit_gib: Optional[float] = setting(
        None, "GiB that the cache may take, on disk all caches together; null: half of what is free", above=0
    )


@dataclass
class OwnFilesConfig(FileDataConfig):
    """Images of the user's own, from which some may be left out."""

    exclude: Optional[str] = setting(
        None,
        "CSV file whose column path names images that are left out as if they were not there, such as the "
        "quarantine.csv of cvtrain check",
    )
    group_regex: Optional[str] = setting(
        None,
        "regular expression whose first parenthesis names, in an image's path, the group that it belongs to; where val "
        "is split off, no group is on both sides",
    )


@dataclass
class CustomConfig(OwnFilesConfig):
    """A folder: train/ val/ [test/] of class folders, or class folders alone, split by seed."""

    name: str = "custom"
    extensions: List[str] = setting(list(IMAGE_EXTENSIONS), "file names that count as images, whatever their case")


@dataclass
class CsvConfig(OwnFilesConfig):
    """A manifest: one row per image with its path, its label and, if wanted, its split."""

    name: str = "csv"
    file: str = required("the manifest, a text file with a header row")
    root: str = setting("", "folder that relative paths start from; empty: the manifest's own folder")
    delimiter: str = setting("auto", "character between columns; auto: found from the header row")
    path_column: str = setting("path", "column with the image's path")
    label_column: str = setting("label", "column with the class name")
    path_suffix: str = setting("", "added to each path that does not end with it, such as .png for ids of Kaggle")
    split_column: str = setting(
        "split", "column with train, val or test, or is_valid with true or false; without it val_fraction splits"
    )
    val_values: List[str] = setting(
        [], "values of split_column that mean val, such as [0] of a column fold; all others then mean train"
    )
    test_values: List[str] = setting([], "values of split_column that mean test; all others then mean train")
    group_column: Optional[str] = setting(
        None, "column that names the group of an image, such as its person or video, as data.group_regex does"
    )
    allow_outside_root: bool = setting(False, "allow paths that lead out of root")


@dataclass
class TorchvisionDataConfig(FileDataConfig):
    """A set that torchvision knows by name."""

    dataset: TorchvisionSet = required("which set")
    root: str = setting("datasets", "folder that holds the sets, shared by all of them")
    download: bool = setting(False, "fetch what is missing from the set's own site")


@dataclass
class HuggingFaceConfig(DecodedDataConfig):
    """A set of the Hugging Face hub, or a local folder that `datasets.load_dataset` reads (extra: hf)."""

    name: str = "huggingface"
    path: str = required("name on the hub, or a local folder")
    subset: Optional[str] = setting(None, "name of the configuration, where a set has several")
    image_column: str = setting("image", "column with the image")
    label_column: str = setting("label", "column with the class")
    train_split: str = setting("train", "split to train on")
    val_split: Optional[str] = setting(None, "split to select by; null: validation or val if there, else val_fraction")
    test_split: Optional[str] = setting(None, "split scored once at the end; null: test if there")
    download: bool = setting(False, "fetch from the hub what is not in the local cache")
    max_image_pixels: int = setting(
        178_956_970, "images with more pixels than this count as bad, against decompression bombs", at_least=1
    )


@dataclass
class DatasetConfig(DecodedDataConfig):
    """A user's own map-style Dataset class: items are (image, class id), image a PIL image, array or tensor."""

    name: str = "dataset"
    target: str = required("import path of the class or function, such as my_package.data.Birds")
    kwargs: Dict[str, Any] = setting({}, "arguments for it, for every split")
    # Empty and not null for off: omegaconf 2.3 cannot merge a mapping from the command line into a null one.
    train_kwargs: Dict[str, Any] = setting({}, "more arguments for the train split, such as split: train")
    val_kwargs: Dict[str, Any] = setting(
        {}, "more arguments for the val split; empty: there is none, so val is split off train by val_fraction"
    )
    test_kwargs: Dict[str, Any] = setting({}, "more arguments for the test split; empty: there is none")


def parse_fold(text: str) -> Tuple[int, int]:
    """Return i and k of `i/k`.

    Raises:
        ValueError: it is not of that form, k is below 2, or i is not below k.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise ValueError("has to be i/k, such as 0/5: fold i, from 0, of k")
    number, count = int(found[1]), int(found[2])
    if count < 2:
        raise ValueError("there have to be at least 2 folds")
    if number >= count:
        raise ValueError(f"folds are counted from 0: the last of {count} is {count - 1}/{count}")
    return number, count


DATA_CONFIGS: Dict[str, type] = {
    "digits": DigitsConfig,
    "custom": CustomConfig,
    "csv": CsvConfig,
    "torchvision": TorchvisionDataConfig,
    "huggingface": HuggingFaceConfig,
    "dataset": DatasetConfig,
}
