import pickle

import numpy as np
import pytest

from cvtrain.data.images.errors import BadImageError, ImageError
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import ArraySource, DatasetSource, FileSource, Splits, with_labels


def filled(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def read_number(path: str) -> np.ndarray:
    """Stands in for a reader: an image of the number in the file name."""
    return filled(int(path.rsplit("/", 1)[1].split(".")[0]))


def array_source(count: int = 4) -> ArraySource:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return ArraySource(images=images, labels=np.arange(count) % 2, prefix="digits")


def file_source(count: int = 4) -> FileSource:
    paths = PathTable.from_iterable(f"c/{number}.png" for number in range(count))
    return FileSource(root="/data", paths=paths, labels=np.arange(count) % 2, reader=read_number)


def dataset_source(count: int = 4) -> DatasetSource:
    items = [(filled(number), number % 2) for number in range(count)]
    return DatasetSource(dataset=items, labels=np.arange(count) % 2, convert=np.asarray, prefix="Mine[train]")


SOURCES = {
    "array": (array_source, "digits[2]"),
    "file": (file_source, "c/2.png"),
    "dataset": (dataset_source, "Mine[train][2]"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_source_reads_and_names_by_index(kind: str) -> None:
    make, name = SOURCES[kind]
    source = make()
    assert len(source) == 4
    assert np.array_equal(source.read(2), filled(2))
    assert source.name(2) == name


@pytest.mark.parametrize("kind", SOURCES)
def test_part_of_a_source_keeps_images_labels_and_names(kind: str) -> None:
    make, _ = SOURCES[kind]
    whole = make()
    part = whole.take(np.array([3, 2, 0])).take(np.array([1, 2]))
    assert len(part) == 2
    assert [int(part.read(row)[0, 0, 0]) for row in range(2)] == [2, 0]
    assert part.labels.tolist() == [0, 0]
    assert [part.name(row) for row in range(2)] == [whole.name(2), whole.name(0)]


@pytest.mark.parametrize("kind", SOURCES)
def test_source_survives_pickling_for_spawned_workers(kind: str) -> None:
    source = SOURCES[kind][0]().take(np.array([1, 3]))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(1), filled(3))
    assert copy.labels.tolist() == source.labels.tolist() == [1, 1]
    assert copy.name(1) == source.name(1)


def test_file_source_joins_root_and_path() -> None:
    source = FileSource(
        root="/data",
        paths=PathTable.from_iterable(["a/1.png", "/elsewhere/2.png", "a/\udcff.png"]),
        labels=np.zeros(3, np.int64),
        reader=read_number,
    )
    assert [source.path(row) for row in range(2)] == ["/data/a/1.png", "/elsewhere/2.png"]
    assert source.name(2) == "a/\\udcff.png"
    assert source.path(2) == "/data/a/\udcff.png"


def test_million_files_fit_in_150_mb_by_a_fifth_of_them() -> None:
    count = 200_000
    paths = PathTable.from_iterable(
        f"train/n{number % 1000:08d}/n{number:08d}_{number:08d}.JPEG" for number in range(count)
    )
    source = FileSource(root="/data", paths=paths, labels=np.zeros(count, np.int64), reader=read_number)
    held = source.paths.nbytes + source.labels.nbytes
    assert held == count * (39 + 8 + 8) + 8
    assert held * 5 < 150e6
    assert len(pickle.dumps(source)) < held + 2000  # nothing else travels to a worker


def test_unusable_item_of_a_dataset_is_a_bad_image_with_its_name() -> None:
    for error, cause in (
        (ImageError("pixels of type int64"), "pixels of type int64"),
        (OSError("broken data stream"), "damaged; the decoder says: broken data stream"),
        (IndexError("19"), "damaged; the decoder says: IndexError: 19"),
        (MemoryError(), "not enough memory to decode it"),
    ):

        def refuse(image: object, error: Exception = error) -> np.ndarray:
            raise error

        source = DatasetSource(dataset=[(1, 0)], labels=np.zeros(1, np.int64), convert=refuse, prefix="Mine[val]")
        with pytest.raises(BadImageError) as caught:
            source.read(0)
        assert (caught.value.path, caught.value.cause) == ("Mine[val][0]", cause)


def test_errors_of_the_users_class_go_out_as_they_are() -> None:
    class Broken:
        def __getitem__(self, index: int) -> object:
            raise OSError("disk on fire")

    source = DatasetSource(dataset=Broken(), labels=np.zeros(1, np.int64), convert=np.asarray, prefix="Broken")
    with pytest.raises(OSError, match="disk on fire") as caught:
        source.read(0)
    assert not isinstance(caught.value, BadImageError)


def test_with_labels_leaves_the_original_alone() -> None:
    source = array_source()
    relabelled = with_labels(source, np.array([5, 6, 7, 8]))
    assert relabelled.labels.tolist() == [5, 6, 7, 8]
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert relabelled.images is source.images


def test_with_classes_renumbers_by_name() -> None:
    splits = Splits(train=array_source(), val=file_source(), test=None, classes=("ants", "bees"))
    moved = splits.with_classes(("bees", "wasps", "ants"))
    assert moved.classes == ("bees", "wasps", "ants")
    assert moved.train.labels.tolist() == [2, 0, 2, 0]
    assert moved.val.labels.tolist() == [2, 0, 2, 0]
    assert moved.test is None
    with pytest.raises(ValueError, match=r"not trained on: ants\. The model knows bees, cats"):
        splits.with_classes(("bees", "cats"))
