"""Sources: what images there are and what their labels are. A source reads one image; it does not resize or batch.

All sources can be pickled (workers that are spawned) and hold their bulk in arrays (workers that are forked).
"""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH118

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from cvtrain.config.text import display_list
from cvtrain.data.images.errors import BadImageError, TooManyFilesError, describe_error, is_out_of_files
from cvtrain.data.sources.path_table import PathTable, printable

SourceT = TypeVar("SourceT", bound="ImageSource")


class ImageSource(Protocol):
    """Labelled images by index.

    Attributes:
        labels: (N,) int64 class ids.
    """

    labels: np.ndarray

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, C) uint8. Raises `BadImageError` if it cannot be decoded."""
        ...

    def name(self, index: int) -> str:
        """Return the name of image `index` for people: its path below the data root, or `digits[12]`."""
        ...


class SplittableSource(ImageSource, Protocol):
    """A source of which a part can be taken."""

    def take(self, indices: np.ndarray) -> "SplittableSource":
        """Return a source of the images at `indices` (M,) int64, which keep their names."""
        ...


class ArraySource:
    """Images of one size, in memory.

    Args:
        images: (N, H, W, C) uint8. Public, so that a loader can index a whole batch at once.
        labels: (N,) int64 class ids.
        prefix: name of the array, for `name`.
        rows: (N,) int64 rows of the array that the images came from; None: 0..N-1.
    """

    uses_global_rng = False

    def __init__(self, *, images: np.ndarray, labels: np.ndarray, prefix: str, rows: np.ndarray | None = None) -> None:
        assert images.ndim == 4 and images.dtype == np.uint8 and len(images) == len(labels)
        self.images = images if images.flags.writeable else images.copy()  # torch shares no read-only memory
        self.labels = labels
        self.prefix = prefix
        self.rows = np.arange(len(labels), dtype=np.int64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self.rows[index]}]"

    def take(self, indices: np.ndarray) -> "ArraySource":
        """A source of the images at `indices` (M,) int64, which keep their names."""
        return ArraySource(
            images=self.images[indices], labels=self.labels[indices], prefix=self.prefix, rows=self.rows[indices]
        )


class FileSource:
    """Images in files.

    Args:
        root: folder that the paths start from.
        paths: N paths with `/` between folders, relative to `root`, or absolute.
        labels: (N,) int64 class ids.
        reader: from a path to (H, W, C) uint8; raises `BadImageError`.
    """

    uses_global_rng = False

    def __init__(
        self, *, root: str | os.PathLike[str], paths: PathTable, labels: np.ndarray, reader: Callable[[str], np.ndarray]
    ) -> None:
        assert len(paths) == len(labels)
        self.root = os.fspath(root)
        self.paths = paths
        self.labels = labels
        self.reader = reader

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the full path of image `index`."""
        return os.path.join(self.root, self.paths[index])

    def read(self, index: int) -> np.ndarray:
        return self.reader(self.path(index))

    def name(self, index: int) -> str:
        return printable(self.paths[index])

    def take(self, indices: np.ndarray) -> "FileSource":
        """A source of the files at `indices` (M,) int64."""
        return FileSource(
            root=self.root, paths=self.paths.take(indices), labels=self.labels[indices], reader=self.reader
        )


class DatasetSource:
    """A map-style dataset whose items are (image, class id).

    Args:
        dataset: anything with `__len__` and `__getitem__`; only the image of an item is used here.
        labels: (N,) int64 class ids.
        convert: from the item's image to (H, W, C) uint8; what it raises becomes a `BadImageError`.
        prefix: name of the dataset, for `name`.
        rows: (N,) int64 rows of the dataset that the images come from; None: 0..N-1.
    """

    uses_global_rng = True

    def __init__(
        self,
        *,
        dataset: Any,
        labels: np.ndarray,
        convert: Callable[[Any], np.ndarray],
        prefix: str,
        rows: np.ndarray | None = None,
    ) -> None:
        self.dataset = dataset
        self.labels = labels
        self.convert = convert
        self.prefix = prefix
        self.rows = np.arange(len(labels), dtype=np.int64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        image = self.dataset[int(self.rows[index])][0]  # what the user's own class raises goes out as it is
        try:
            return self.convert(image)
        except Exception as error:  # Pillow decodes late, and raises almost any type on damaged bytes
            if is_out_of_files(error):
                raise TooManyFilesError(self.name(index)) from error
            cause = error.cause if isinstance(error, BadImageError) else describe_error(error)
            raise BadImageError(self.name(index), cause) from error

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self.rows[index]}]"

    def take(self, indices: np.ndarray) -> "DatasetSource":
        """A source of the items at `indices` (M,) int64, which keep their names."""
        taken = with_labels(self, self.labels[indices])
        taken.rows = self.rows[indices]
        return taken


class Concatenation:
    """Several sources one after the other, under one map of classes."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = list(sources)
        self.labels = np.concatenate([source.labels for source in sources])
        self.uses_global_rng = any(map(uses_global_rng, sources))
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return len(self.labels)

    def _locate(self, index: int) -> tuple[ImageSource, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[part], index - (int(self._ends[part - 1]) if part else 0)

    def read(self, index: int) -> np.ndarray:
        source, position = self._locate(index)
        return source.read(position)

    def name(self, index: int) -> str:
        source, position = self._locate(index)
        return source.name(position)


def uses_global_rng(source: ImageSource) -> bool:
    """Return True if reading may use the global random generators, as a user's own code does.

    Given by an attribute of this name; True for a source without it.
    """
    return bool(getattr(source, "uses_global_rng", True))


def with_labels(source: SourceT, labels: np.ndarray) -> SourceT:
    """The same images under other class ids, (N,) int64."""
    relabelled = copy.copy(source)
    relabelled.labels = labels
    return relabelled


@dataclass(frozen=True)
class Splits:
    """The images of a run. `val` selects; `test`, if there is one, is scored once at the end.

    Attributes:
        classes: names; the class id is the position. One map for all splits.
        left_out: lines on what was not taken, by reason, count and name.
        notes: lines on how the splits were made.
        warnings: lines on what a person would want to know before the run starts.
        empty_classes: names of class folders without images, which are not among `classes`.
    """

    train: ImageSource
    val: ImageSource
    test: ImageSource | None
    classes: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()

    def parts(self) -> dict[str, ImageSource]:
        """The splits that exist, by name."""
        parts: dict[str, ImageSource] = {"train": self.train, "val": self.val}
        return parts if self.test is None else {**parts, "test": self.test}

    def with_classes(self, classes: tuple[str, ...]) -> "Splits":
        """The same splits under the class ids of `classes`, say those of a checkpoint.

        Raises:
            ValueError: images of a class that `classes` lacks.
        """
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise ValueError(
                f"the data has classes that the model was not trained on: {display_list(unknown)}. "
                f"The model knows {display_list(classes)}"
            )
        ids = np.array([classes.index(name) for name in self.classes], dtype=np.int64)
        parts = {split: with_labels(source, ids[source.labels]) for split, source in self.parts().items()}
        return replace(self, classes=classes, train=parts["train"], val=parts["val"], test=parts.get("test"))
