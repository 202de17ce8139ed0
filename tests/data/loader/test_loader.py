"""Batches: equal for any number of workers, clean ends and starts of epochs, bad images, an untouched main process."""

import csv
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import NoisySource
from made_loaders import SIZE, RandomCrop, assert_equal_batches, children, make_dataset, make_loader, wait_until_gone

from cvtrain.data.images.errors import BadImage, write_skipped
from cvtrain.data.images.reader import BadImageError
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.data.sources.source import ArraySource
from cvtrain.runtime.rng import derive_seed

# ---------------------------------------------------------------- what a batch is


def test_batch_equals_a_plain_loop() -> None:
    source, transform = NoisySource(), RandomCrop()
    batch = make_dataset(source, transform)[BatchIndices(2, 5, np.array([16, 3, 3, 0]))]
    expected = [transform(source.read(index), derive_seed(11, 2, index)) for index in (16, 3, 3, 0)]
    assert torch.equal(batch.images, torch.stack(expected)) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.tolist() == [1, 0, 0, 0] and batch.labels.dtype == torch.int64
    assert batch.indices.tolist() == [16, 3, 3, 0]
    assert (batch.epoch, batch.number, batch.bad, len(batch)) == (2, 5, [], 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_are_indexed_whole(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, channels), dtype=np.uint8)
    source = ArraySource(images=images, labels=np.arange(9), prefix="toy")
    options = {"image_size": SIZE, "channels": channels, "seed": 0}
    resize = build_eval_transform(image_size=SIZE, resize="pad", crop_fraction=0.5)
    fast = BatchDataset(source=source, eval_transform=resize, **options)
    slow = BatchDataset(source=source, eval_transform=resize, train_transform=lambda image, _: resize(image), **options)
    assert fast.is_ready_made and not slow.is_ready_made
    key = BatchIndices(0, 0, np.array([8, 1, 1, 4]))
    assert_equal_batches([fast[key]], [slow[key]])
    assert fast[key].images.is_contiguous(memory_format=torch.channels_last)
    fast[key].images.zero_()
    assert source.images.any()  # a batch is a copy
    other_size = BatchDataset(source=source, eval_transform=resize, **{**options, "image_size": SIZE + 1})
    assert not other_size.is_ready_made


# ---------------------------------------------------------------- workers


@pytest.mark.parametrize("draws", [False, True], ids=["quiet_source", "source_that_draws"])
def test_batches_do_not_depend_on_num_workers(draws: bool) -> None:
    runs = []
    for num_workers in (0, 1, 3):
        torch.manual_seed(num_workers)  # the global generators must not matter
        np.random.seed(num_workers)  # noqa: NPY002
        random.seed(num_workers)
        loader = make_loader(NoisySource(bad=(5,), draws=draws), RandomCrop(), num_workers=num_workers,
                             skip_bad_images=True)  # fmt: skip
        runs.append([batch for epoch in range(3) for batch in loader.epoch(epoch)])
        loader.close()
    assert_equal_batches(runs[0], runs[1])
    assert_equal_batches(runs[0], runs[2])
    assert sum(len(batch) for batch in runs[0]) == 3 * 16
    assert not torch.equal(runs[0][0].images, runs[0][5].images)  # another epoch, another augmentation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_start_batch_resumes_a_cut_epoch(num_workers: int) -> None:
    loader = make_loader(NoisySource(), RandomCrop(), num_workers=num_workers)
    whole = list(loader.epoch(4))
    assert_equal_batches(list(loader.epoch(4, start_batch=3)), whole[3:])
    assert list(loader.epoch(4, start_batch=5)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_after_an_unfinished_one_is_clean(num_workers: int) -> None:
    loader = make_loader(NoisySource(), RandomCrop(), num_workers=num_workers, prefetch_batches=2)
    expected = {epoch: list(loader.epoch(epoch)) for epoch in range(4)}
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            assert_equal_batches([batch], [expected[epoch][batch.number]])
            if batch.number == 1:
                break
    assert_equal_batches(list(loader.epoch(1)), expected[1])


def test_two_epochs_at_once_are_refused() -> None:
    loader = make_loader(NoisySource(), num_workers=1)
    first, second = loader.epoch(0), loader.epoch(1)
    next(first)
    next(second)
    with pytest.raises(AssertionError, match="another epoch of this loader was started"):
        next(first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_generators_are_unchanged(num_workers: int) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loader = make_loader(NoisySource(draws=True), RandomCrop(), num_workers=num_workers)
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]  # noqa: NPY002


def test_workers_persist_until_close() -> None:
    loader = make_loader(NoisySource(), num_workers=2)
    list(loader.epoch(0))
    first = children()
    list(loader.epoch(1))
    assert children() == first and len(first) == 2
    loader.close()
    assert wait_until_gone(first)
    assert len(list(loader.epoch(2))) == 5  # a later epoch starts new ones


def test_start_starts_the_workers_of_the_epoch() -> None:
    expected = [list(make_loader(NoisySource(), RandomCrop()).epoch(epoch)) for epoch in range(2)]
    loader = make_loader(NoisySource(), RandomCrop(), num_workers=2)
    loader.start()
    first = children()
    assert len(first) == 2
    loader.start()
    for epoch in range(2):
        assert_equal_batches(list(loader.epoch(epoch)), expected[epoch])
        loader.start()
    assert children() == first
    loader.close()
    assert wait_until_gone(first)


def test_no_more_workers_than_batches() -> None:
    assert make_loader(NoisySource(count=9), num_workers=16).num_workers == 3


def test_dataset_can_be_pickled() -> None:
    dataset = make_dataset(NoisySource(), RandomCrop())
    key = BatchIndices(0, 0, np.arange(5))
    assert_equal_batches([pickle.loads(pickle.dumps(dataset))[key]], [dataset[key]])


class Failing:
    def __call__(self, image: np.ndarray, seed: int) -> torch.Tensor:
        raise ZeroDivisionError("from the transform")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_transform_error_keeps_type_and_names_image(num_workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="from the transform") as caught:
        list(make_loader(NoisySource(), Failing(), num_workers=num_workers, shuffle=False).epoch(0))
    if sys.version_info >= (3, 11):
        text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))  # with a worker: in its traceback
        assert "while transforming 0.jpg, (5, 8, 3) uint8" in text


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pinned_batches_are_the_same(num_workers: int) -> None:
    source = NoisySource(bad=(5,))
    expected = list(make_loader(source, RandomCrop(), skip_bad_images=True).epoch(1))
    loader = make_loader(source, RandomCrop(), num_workers=num_workers, pin_memory=True, skip_bad_images=True)
    batches = list(loader.epoch(1))
    assert all(batch.images.is_pinned() and batch.labels.is_pinned() for batch in batches if len(batch))
    assert_equal_batches(batches, expected)
    loader.close()


# ---------------------------------------------------------------- bad images


@pytest.mark.parametrize("num_workers", [0, 2])
def test_first_bad_image_in_order_raises(num_workers: int) -> None:
    loader = make_loader(NoisySource(bad=(13, 6)), num_workers=num_workers, shuffle=False)
    seen = []
    with pytest.raises(BadImageError) as caught:
        for batch in loader.epoch(0):
            seen += batch.indices.tolist()
    assert seen == [0, 1, 2, 3]  # the batch of image 6 is not given out
    assert (caught.value.path, caught.value.cause, caught.value.index) == ("6.jpg", "truncated", 6)
    assert "data.on_bad_image=skip" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_skipped_and_listed(num_workers: int) -> None:
    bad = (1, 4, 5, 6, 7)
    loader = make_loader(NoisySource(bad=bad), num_workers=num_workers, shuffle=False, skip_bad_images=True)
    batches = list(loader.epoch(0))
    assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3], [], [8, 9, 10, 11], [12, 13, 14, 15], [16]]
    assert batches[1].images.shape == (0, 3, SIZE, SIZE) and batches[1].labels.dtype == torch.int64
    list(loader.epoch(1))
    assert loader.bad_images == {index: BadImage(index, f"{index}.jpg", "truncated") for index in bad}
    whole = make_loader(NoisySource(), shuffle=False)
    assert torch.equal(batches[0].images, next(iter(whole.epoch(0))).images[[0, 2, 3]])


def test_log_names_first_skipped_image_and_count(caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader(NoisySource(bad=(3, 6, 9)), shuffle=False, skip_bad_images=True)
    first = "3.jpg cannot be read and is left out: truncated"
    for epoch in range(2):  # the second time nothing is new
        list(loader.epoch(epoch))
        assert [record.getMessage() for record in caplog.records] == [
            first,
            "3 images could not be read so far and were left out",
        ]
    caplog.clear()
    list(make_loader(NoisySource(bad=(3,)), shuffle=False, skip_bad_images=True).epoch(0))
    assert [record.getMessage() for record in caplog.records] == [first]


def test_only_bad_images_is_an_error() -> None:
    loader = make_loader(NoisySource(bad=tuple(range(17))), shuffle=False, skip_bad_images=True)
    with pytest.raises(BadImageError, match=r"0\.jpg.*: truncated; nor could any other image be read"):
        list(loader.epoch(0))


def test_empty_split_has_no_batches() -> None:
    assert list(make_loader(NoisySource(count=0)).epoch(0)) == []


def test_skipped_csv_is_sorted_by_split_and_index(tmp_path: Path) -> None:
    bad = {
        "train": [BadImage(7, "bees/ü,1.jpg", "the file is empty (0 bytes)"), BadImage(2, "ants/\udcff.jpg", "gone")],
        "val": [BadImage(0, "x.png", 'a "quoted" cause')],
        "test": [],
    }
    assert write_skipped(tmp_path / "skipped.csv", bad) == 3
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["split", "index", "path", "cause"],
        ["train", "2", "ants/\\udcff.jpg", "gone"],
        ["train", "7", "bees/ü,1.jpg", "the file is empty (0 bytes)"],
        ["val", "0", "x.png", 'a "quoted" cause'],
    ]
    assert write_skipped(tmp_path / "none.csv", {"train": []}) == 0 and not (tmp_path / "none.csv").exists()
