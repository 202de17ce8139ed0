"""Source `dataset`: a user's own map-style Dataset class, by its import path."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.imports import import_object
from cvtrain.config.schema.data import DatasetConfig
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.reader import image_to_array
from cvtrain.data.sources.classes import check_known, class_name
from cvtrain.data.sources.source import DatasetSource, Splits, with_labels
from cvtrain.data.sources.splits import SplitSettings, complete_splits

_KEY = "data.target"


def build_dataset(config: DatasetConfig) -> Splits:
    """The splits that `config.target`, called once per split, returns.

    Class ids come from the attribute `targets` or `labels` of a dataset, else from one pass over its items. Class names
    come from `classes`, else they are the ids. Splits that name their classes are matched by name.

    Raises:
        ConfigError: a dataset does not keep to this; it names the class and what was expected.
        Exception: whatever the user's class raises.
    """
    factory = import_object(config.target, _KEY)
    if not callable(factory):
        raise ConfigError(
            key=_KEY, value=config.target, rule=f"is of type {type(factory).__name__}, not a class or function"
        )
    convert = functools.partial(
        image_to_array,
        channels=config.channels,
        alpha_color=tuple(config.alpha_color),
        bit_depth=config.bit_depth,
    )
    arguments = {"train": config.train_kwargs, "val": config.val_kwargs, "test": config.test_kwargs}
    notes: list[str] = []
    parts: dict[str, DatasetSource] = {}
    names: dict[str, tuple[str, ...] | None] = {}
    for split, kwargs in arguments.items():
        if split != "train" and not kwargs:
            continue
        dataset = factory(**{**config.kwargs, **kwargs})
        labels, by_pass = _labels_of(dataset, config.target, split)
        if by_pass:
            notes.append(
                f"{split}: class ids were read by one pass over all items; an attribute `targets` would save that"
            )
        prefix = f"{type(dataset).__name__}[{split}]"
        parts[split] = DatasetSource(dataset=dataset, labels=labels, convert=convert, prefix=prefix)
        names[split] = _class_names(dataset, labels, config.target, split)
    classes = names["train"] or tuple(str(label) for label in range(int(parts["train"].labels.max()) + 1))
    for split in parts:
        parts[split] = _match_classes(parts[split], names[split], classes, split, config.target)
    _check_first_image(parts["train"], config.target)
    return complete_splits(
        parts,
        classes=classes,
        settings=SplitSettings.of(config),
        key=_KEY,
        notes=tuple(notes),
    )


def _wrong(target: str, rule: str, remedy: str = "") -> ConfigError:
    return ConfigError(key=_KEY, value=target, rule=rule, remedy=remedy)


def _labels_of(dataset: Any, target: str, split: str) -> tuple[np.ndarray, bool]:
    """(N,) int64 class ids, and whether a pass over all items was needed."""
    kind = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise _wrong(
            target,
            f"gives a {kind} for {split}, which lacks __len__ or __getitem__",
            "a map-style dataset is needed; an iterable one cannot be shuffled by index",
        )
    if len(dataset) == 0:
        raise _wrong(target, f"gives an empty {kind} for {split}")
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and not callable(values):
            labels = np.asarray(values)
            if labels.shape != (len(dataset),):
                raise _wrong(
                    target,
                    f"{kind}.{attribute} for {split} has shape {labels.shape}, but the dataset {len(dataset)} items",
                    "it must hold one class id per item",
                )
            return _as_ids(labels, f"{kind}.{attribute}", target, split), False
    items = (_checked_item(dataset, index, target, split) for index in range(len(dataset)))
    return _as_ids(np.array([np.asarray(label).item() for _, label in items]), f"{kind}'s items", target, split), True


def _as_ids(labels: np.ndarray, where: str, target: str, split: str) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        shown = ", ".join(repr(value) for value in labels[:3].tolist())
        raise _wrong(
            target,
            f"{where} for {split}: class ids must be integers from 0 up, found {shown}, ...",
            "give positions in `classes`, not names",
        )
    return labels.astype(np.int64)


def _checked_item(dataset: Any, index: int, target: str, split: str) -> tuple[Any, Any]:
    item = dataset[index]
    if isinstance(item, Mapping) or not isinstance(item, (tuple, list)) or len(item) != 2:
        held = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else type(item).__name__
        raise _wrong(
            target,
            f"{type(dataset).__name__}[{index}] for {split} is a {held}; expected a pair (image, class id)",
            "return image, label from __getitem__, the image a PIL image, array or tensor",
        )
    label = np.asarray(item[1])
    if label.size != 1:
        raise _wrong(target, f"{type(dataset).__name__}[{index}] for {split}: the label {item[1]!r} is no class id")
    return item[0], item[1]


def _check_first_image(source: DatasetSource, target: str) -> None:
    """Read one image now, so that an item of a wrong kind is an error of the setting and not one of a worker."""
    _checked_item(source.dataset, 0, target, "train")
    try:
        source.read(0)
    except BadImageError as error:
        raise _wrong(target, f"{error.path}: {error.cause}", "an image is a PIL image, an array or a tensor") from error


def _class_names(dataset: Any, labels: np.ndarray, target: str, split: str) -> tuple[str, ...] | None:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return None
    names = tuple(class_name(str(name)) for name in classes)
    if len(set(names)) != len(names):
        raise _wrong(target, f"{type(dataset).__name__}.classes for {split} names a class twice")
    if labels.max() >= len(names):
        raise _wrong(
            target,
            f"{type(dataset).__name__} for {split} has class id {labels.max()}, but `classes` only {len(names)} names",
        )
    return names


def _match_classes(
    source: DatasetSource, names: tuple[str, ...] | None, classes: tuple[str, ...], split: str, target: str
) -> DatasetSource:
    """`source` under the ids of `classes`, matched by name where the split has names."""
    own = names or tuple(classes) + tuple(str(label) for label in range(len(classes), int(source.labels.max()) + 1))
    present = [own[label] for label in np.unique(source.labels)]
    check_known(present, classes, split=split, key=_KEY, value=target)
    ids = np.array([classes.index(name) if name in classes else -1 for name in own], dtype=np.int64)
    return with_labels(source, ids[source.labels])
