"""Source `huggingface`: a set of the Hugging Face hub, or a local folder in one of the forms that `datasets` reads."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import HuggingFaceConfig
from cvtrain.config.text import display_list
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.reader import Reader
from cvtrain.data.sources.classes import check_known, class_name, order_classes
from cvtrain.data.sources.source import DatasetSource, Splits
from cvtrain.data.sources.splits import SplitSettings, complete_splits

_VAL_NAMES = ("validation", "val", "valid")
_SAVED_TO_DISK = ("dataset_dict.json", "state.json")


class ImageColumn:
    """The encoded images of a `datasets.Dataset`, as items ({"bytes": ..., "path": ...}, None).

    Decoding is left to our own reader: it applies the one rule for modes and finds files that are cut short.
    """

    def __init__(self, dataset: Any, column: str) -> None:
        import datasets

        encoded = dataset.with_format(None).select_columns([column])
        self.dataset = encoded.cast_column(column, datasets.Image(decode=False))
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, None]:
        return self.dataset[index][self.column], None


def decode_item(item: dict[str, Any] | None, reader: Reader) -> np.ndarray:
    """(H, W, C) uint8 from an item of `ImageColumn`. Raises `BadImageError`."""
    if item is None:
        raise BadImageError("", "the row has no image")
    if item["bytes"] is None:
        return reader(item["path"])
    return reader.decode(item["bytes"], item["path"] or "")


def build_huggingface(config: HuggingFaceConfig) -> Splits:
    """The splits of `config.path`, matched by class name.

    Raises:
        ConfigError: the extra is not installed, the set is not there, or a split or column is missing.
    """
    loaded = _load(config)
    names = _chosen_splits(loaded, config)
    notes: list[str] = []
    found: dict[str, tuple[Any, np.ndarray, tuple[str, ...]]] = {}
    for split, name in names.items():
        _check_columns(loaded[name], config)
        labels, own_names = _labels_of(loaded[name], config)
        if split == "test" and config.test_split is None and len(labels) and labels.max() < 0:
            notes.append("the split test has no labels, so it is left out: there is nothing to score")
            continue
        if len(labels) and labels.min() < 0:
            raise ConfigError(
                key="data.label_column",
                value=config.label_column,
                rule=f"{int((labels < 0).sum())} images of split {name} have no label",
            )
        found[split] = (loaded[name], labels, own_names)
    classes = found["train"][2]
    reader = Reader(
        library="pillow",
        channels=config.channels,
        alpha_color=tuple(config.alpha_color),
        max_image_pixels=config.max_image_pixels,
        bit_depth=config.bit_depth,
    )
    convert = functools.partial(decode_item, reader=reader)
    sources = {}
    for split, (dataset, labels, own_names) in found.items():
        present = [own_names[label] for label in np.unique(labels)]
        check_known(present, classes, split=split, key="data.path", value=config.path)
        ids = np.array([classes.index(name) if name in classes else -1 for name in own_names], dtype=np.int64)
        sources[split] = DatasetSource(
            dataset=ImageColumn(dataset, config.image_column),
            labels=ids[labels],
            convert=convert,
            prefix=f"{config.path}[{names[split]}]",
        )
    return complete_splits(
        sources,
        classes=classes,
        settings=SplitSettings.of(config),
        key="data.path",
        notes=tuple(notes),
    )


def _chosen_splits(loaded: Any, config: HuggingFaceConfig) -> dict[str, str]:
    """The set's own names of train and, where there are such, of val and test."""
    names = {"train": config.train_split, "val": config.val_split, "test": config.test_split}
    names["val"] = names["val"] or next((name for name in _VAL_NAMES if name in loaded), None)
    names["test"] = names["test"] or ("test" if "test" in loaded else None)
    chosen = {split: name for split, name in names.items() if name is not None}
    for split, name in chosen.items():
        if name not in loaded:
            raise ConfigError(
                key=f"data.{split}_split",
                value=name,
                rule=f"{config.path} has no such split",
                remedy=f"it has {display_list(list(loaded))}",
            )
    return chosen


def _load(config: HuggingFaceConfig) -> Any:
    """The set's splits by name."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            key="data.name",
            value=config.name,
            rule=f"needs the library datasets, which cannot be imported: {error}",
            remedy="uv sync --extra hf, or pip install datasets",
        ) from error
    try:
        path = str(Path(config.path).expanduser()) if config.path.startswith("~") else config.path
        if any(Path(path, name).exists() for name in _SAVED_TO_DISK):
            saved = datasets.load_from_disk(path)
            return saved if isinstance(saved, dict) else {config.train_split: saved}
        with contextlib.nullcontext() if config.download else _offline():
            return datasets.load_dataset(path, name=config.subset)
    # A wrong name, a missing configuration, no network: the library has dozens of classes for them, of these kinds.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        local = Path(config.path).is_dir()
        remedy = "look at the folder's files" if local else f"for a set of the hub, {_hub_remedy(config)}"
        raise ConfigError(
            key="data.path", value=config.path, rule=f"cannot be loaded: {error}", remedy=remedy
        ) from error


def _hub_remedy(config: HuggingFaceConfig) -> str:
    import datasets

    cache = datasets.config.HF_DATASETS_CACHE
    if config.download:
        return f"check its name, data.subset and the network; what was fetched before is in {cache}"
    return f"set data.download=true once, or copy the cache of a machine that has it to {cache}; or give a local folder"


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep `datasets` off the network inside the block, as HF_HUB_OFFLINE=1 would.

    The libraries read that variable when they are imported, so it would come too late, and it would stay set for
    whatever else runs in this process; the two module constants that it ends up in are set and restored instead.
    """
    import datasets
    import huggingface_hub

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _check_columns(dataset: Any, config: HuggingFaceConfig) -> None:
    import datasets

    for key, column in (("data.image_column", config.image_column), ("data.label_column", config.label_column)):
        if column not in dataset.column_names:
            raise ConfigError(
                key=key,
                value=column,
                rule=f"{config.path} has no such column",
                remedy=f"it has {display_list(dataset.column_names)}",
            )
    feature = dataset.features[config.image_column]
    if not isinstance(feature, datasets.Image):
        raise ConfigError(
            key="data.image_column",
            value=config.image_column,
            rule=f"holds {feature}, not images",
            remedy="give another column, or cast it once with `datasets` to its Image feature and save the set",
        )


def _labels_of(dataset: Any, config: HuggingFaceConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 positions in the names of this split, -1 for none, and those names."""
    values = dataset.with_format(None)[config.label_column][:]
    feature = dataset.features[config.label_column]
    if hasattr(feature, "names"):
        labels = np.array([-1 if value is None else value for value in values], dtype=np.int64)
        return labels, tuple(class_name(name) for name in feature.names)
    wrong = next((value for value in values if value is not None and not isinstance(value, (str, int))), None)
    if wrong is not None:
        raise ConfigError(
            key="data.label_column",
            value=config.label_column,
            rule=f"holds {type(wrong).__name__} such as {wrong!r}; classes must be names or whole numbers",
        )
    texts = [None if value is None or value == -1 else class_name(str(value)) for value in values]
    names = order_classes(text for text in texts if text is not None)
    ids = {name: label for label, name in enumerate(names)}
    return np.array([-1 if text is None else ids[text] for text in texts], dtype=np.int64), names
