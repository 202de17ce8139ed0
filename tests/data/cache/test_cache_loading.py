"""Cached against uncached: equal where that is promised, close where it is not, whatever becomes of files and disk."""

import errno
import logging
import multiprocessing
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import encode, noise, photo, write

from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import CustomConfig, DataCache, OnBadImage, Resize
from cvtrain.config.schema.root import Config
from cvtrain.data.build import BatchLoader, Loaders, build_loaders
from cvtrain.data.cache import build as cache_build
from cvtrain.data.cache import store as slots
from cvtrain.data.cache.source import CachedSource, NullStore
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.resize import EvalTransform, build_eval_transform
from cvtrain.data.sources.build import build_splits
from cvtrain.distributed.process_group import ProcessGroup

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")
SIZE = 24
CROPPING = [{"RandomResizedCrop": {"scale": [0.3, 1.0]}}, "RandomHorizontalFlip"]


@pytest.fixture(scope="module")
def made_photos(tmp_path_factory) -> Path:
    """26 photos of several sizes in two classes, 18 for training."""
    root = tmp_path_factory.mktemp("made")
    for number in range(26):
        folder = root / ("train" if number < 18 else "val") / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, encode(photo(40 + 7 * (number % 5), 50 + number), "JPEG", quality=90), f"{number:02}.jpg")
    return root


@pytest.fixture
def photos(made_photos, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made_photos, tmp_path / "photos"))


def make_config(root: Path, cache: str, *, transforms: list | None = None, **data) -> Config:
    settings = {"image_size": SIZE, "batch_size": 5, "num_workers": 0, **data}
    folder = str(root.parent / "caches")
    config = Config(data=CustomConfig(root=str(root), cache=DataCache(cache), cache_dir=folder, **settings), seed=3)
    config.augment = AugmentConfig(name="test", transforms=CROPPING if transforms is None else transforms)
    return config


def make_loaders(root: Path, cache: str, **settings) -> Loaders:
    config = make_config(root, cache, **settings)
    return build_loaders(config, build_splits(config.data), device=CPU)


def pixels(loader: BatchLoader, epoch: int = 0) -> torch.Tensor:
    return torch.cat([batch.images for batch in loader.epoch(epoch)])


# Equality


@pytest.mark.parametrize("resize", ["resize_crop", "squash", "pad"])
def test_shrinking_first_changes_no_bit_of_the_evaluation_resize(resize):
    sizes = [*np.random.default_rng(0).integers(1, 130, (120, 2)), (24, 24), (32, 24), (24, 31), (32, 32), (64, 64)]
    for crop_fraction in (0.75, 1.0):
        transform = build_eval_transform(image_size=SIZE, resize=resize, crop_fraction=crop_fraction)
        for height, width in [*sizes, (2, 130), (40, 1000), (1000, 33)]:
            image = noise(int(height), int(width), seed=int(height))
            small = transform.shrink(image)
            assert small.shape[:2] == transform.shrunk_shape(int(height), int(width)) and small.size <= image.size
            assert torch.equal(transform(small), transform(image)), (height, width)
            assert np.array_equal(transform.shrink(small), small)


@pytest.mark.parametrize("resize", list(Resize))
@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_evaluation_is_equal_to_the_bit(photos, resize, cache):
    expected = pixels(make_loaders(photos, "none", resize=resize).val)
    loader = make_loaders(photos, cache, resize=resize).val
    assert isinstance(loader.dataset.source, CachedSource)
    for _ in range(2):
        assert torch.equal(pixels(loader), expected)
    assert loader.dataset.source.store.count() == 8
    assert torch.equal(pixels(make_loaders(photos, cache, resize=resize).val), expected)


@pytest.mark.parametrize("transforms", [[], ["EvalResize", "RandomHorizontalFlip"]])
def test_training_is_equal_to_the_bit_where_it_starts_from_the_evaluation_resize(photos, transforms):
    for resize in Resize:
        uncached = make_loaders(photos, "none", resize=resize, transforms=transforms).train
        cached = make_loaders(photos, "ram", resize=resize, transforms=transforms).train
        for epoch in (0, 1):
            assert torch.equal(pixels(cached, epoch), pixels(uncached, epoch))


def test_training_with_crops_is_equal_for_any_workers_any_epoch_and_any_store(photos, monkeypatch):
    def batches(cache: str, num_workers: int) -> list[torch.Tensor]:
        loaders = make_loaders(photos, cache, num_workers=num_workers)
        seen = [pixels(loaders.train, epoch) for epoch in (0, 1, 0)]
        loaders.close()
        return seen

    expected = batches("ram", 0)
    assert torch.equal(expected[0], expected[2]) and not torch.equal(expected[0], expected[1])
    for cache, num_workers in (("ram", 1), ("ram", 3), ("disk", 3), ("disk", 1), ("disk", 0)):
        assert all(map(torch.equal, batches(cache, num_workers), expected)), (cache, num_workers)
    monkeypatch.setattr(cache_build, "free_memory", lambda: 0)
    monkeypatch.setattr(cache_build.CacheFolder, "room", lambda *given: 0)
    assert all(map(torch.equal, batches("auto", 0), expected))  # fits nowhere: decoded each time, to the same pixels


def test_the_stored_short_side_is_that_of_the_evaluation_resize(photos):
    for resize, side in ((Resize.resize_crop, 32), (Resize.pad, 27)):
        source = make_loaders(photos, "ram", resize=resize, crop_fraction=0.75).train.dataset.source
        assert {min(source.read(index).shape[:2]) for index in range(18)} == {side}


# Statistics


def test_cropped_training_images_keep_their_statistics(photos):
    """720 crops: the mean of all pixels within 1 of 255, the spread within 3 %, of those cut from full-size images."""
    figures = {}
    for cache in ("none", "ram"):
        loader = make_loaders(photos, cache, batch_size=18).train
        images = torch.cat([pixels(loader, epoch) for epoch in range(40)]).float()
        figures[cache] = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)), images.std(dim=(2, 3)).mean(dim=0)
    (mean, spread, contrast), (other_mean, other_spread, other_contrast) = figures["none"], figures["ram"]
    assert (mean - other_mean).abs().max() < 1.0
    assert ((other_spread / spread) - 1).abs().max() < 0.03
    assert ((other_contrast / contrast) - 1).abs().max() < 0.03


# Files


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_second_epoch_opens_no_file(photos, num_workers):
    loaders = make_loaders(photos, "ram", num_workers=num_workers)
    whole = make_loaders(photos, "ram")
    expected = pixels(whole.train, 1)
    pixels(loaders.train), pixels(loaders.val)
    for path in photos.rglob("*.jpg"):
        path.unlink()
    assert torch.equal(pixels(loaders.train, 1), expected) and len(pixels(loaders.val)) == 8
    loaders.close()


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_bad_images_are_not_kept_but_tried_again(photos, cache):
    path = photos / "val" / "ant" / "20.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    loader = make_loaders(photos, cache, on_bad_image=OnBadImage.skip).val
    for _ in range(2):
        assert len(pixels(loader)) == 7 and list(loader.bad_images) == [1]
    assert loader.dataset.source.store.count() == 7
    strict = make_loaders(photos, cache).val
    with pytest.raises(BadImageError, match=r"20\.jpg"):
        pixels(strict)
    path.write_bytes(content)
    assert len(pixels(loader)) == 8 and loader.dataset.source.store.count() == 8


def test_changed_files_are_decoded_again_on_disk(photos):
    pixels(make_loaders(photos, "disk").val)
    write(photos / "val" / "ant", encode(photo(90, 70), "JPEG"), "20.jpg")
    loader = make_loaders(photos, "disk").val
    assert loader.dataset.source.store.count() == 0
    assert torch.equal(pixels(loader), pixels(make_loaders(photos, "none").val))
    assert len(list((photos.parent / "caches").glob("*.images"))) == 2  # the outdated one is gone


# Damage and full disks, seen from a run


def damage(photos: Path, change: Callable[[bytearray], None]) -> None:
    for path in (photos.parent / "caches").glob("*.images"):
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_flipped_bits_are_repaired_with_one_warning(photos, caplog, num_workers):
    first = make_loaders(photos, "disk")
    expected = pixels(first.train), pixels(first.val)
    del first

    def flip(content: bytearray) -> None:
        for place in range(len(content) // 2, len(content), 997):
            content[place] ^= 1

    damage(photos, flip)
    loaders = make_loaders(photos, "disk", num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(pixels(loaders.train), expected[0])
    loaders.close()
    assert len(caplog.records) == 1 and "has damaged images" in caplog.text
    caplog.clear()
    again = make_loaders(photos, "disk")
    assert torch.equal(pixels(again.train), expected[0]) and caplog.text == ""


def test_a_truncated_file_is_repaired(photos):
    expected = pixels(make_loaders(photos, "disk").train)
    for keep in (0.0, 0.001, 0.3, 0.9):
        for path in (photos.parent / "caches").glob("*.images"):
            os.truncate(path, int(path.stat().st_size * keep))
        assert torch.equal(pixels(make_loaders(photos, "disk").train), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_leaves_one_warning(photos, caplog, monkeypatch, num_workers):
    expected = pixels(make_loaders(photos, "ram").train)
    loaders = make_loaders(photos, "disk", num_workers=num_workers)

    def fail(*given: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(slots.os, "pwrite", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(pixels(loaders.train), expected)
    loaders.close()
    assert [record.getMessage() for record in caplog.records] == [
        "cache: the disk is full, but for a reserve that the cache leaves free: 0 of 18 train images are on disk in "
        f"{photos.parent / 'caches'}, the others are decoded each time"
    ]


def test_a_folder_that_cannot_be_made_leaves_one_warning(photos, caplog):
    expected = pixels(make_loaders(photos, "ram").train)
    (photos.parent / "caches").touch()
    with caplog.at_level(logging.WARNING):
        loaders = make_loaders(photos, "disk")
    assert torch.equal(pixels(loaders.train), expected)
    assert isinstance(loaders.train.dataset.source.store, NullStore)
    (warning,) = caplog.records
    assert "images are decoded in each epoch" in warning.getMessage()


def test_the_limit_holds_for_all_splits_together(photos, caplog):
    expected = pixels(make_loaders(photos, "ram").train)
    for cache in ("ram", "disk"):
        loaders = make_loaders(photos, cache, cache_limit_gib=40_000 / 2**30)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(pixels(loaders.train), expected)
            pixels(loaders.val)
        sizes = [loader.dataset.source.store.num_bytes for loader in (loaders.train, loaders.val)]
        assert 30_000 < sum(sizes) <= 40_000
        assert caplog.text.count("(data.cache_limit_gib, by default half") == 2  # one of train, one of val
        caplog.clear()


def test_the_log_says_what_was_picked_and_when_it_is_complete(photos, caplog):
    with caplog.at_level(logging.INFO):
        loaders = make_loaders(photos, "auto")
        for epoch in range(2):
            pixels(loaders.train, epoch)
        pixels(loaders.val)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert lines[0].startswith("cache: in RAM: about 0.00 GiB of ")
    assert lines[1:] == [
        "cache: 18 train images, 0.00 GiB in RAM, complete",
        "cache: 8 val images, 0.00 GiB in RAM, complete",
    ]


def test_auto_asks_no_file_for_its_time_where_nothing_fits_anyway(photos, caplog, monkeypatch):
    monkeypatch.setattr(cache_build, "free_memory", lambda: 0)
    monkeypatch.setattr(cache_build, "compute_fingerprint", None)  # a call would fail
    with caplog.at_level(logging.INFO):
        loaders = make_loaders(photos, "auto", cache_limit_gib=1000 / 2**30)
    assert isinstance(loaders.train.dataset.source.store, NullStore)
    assert "cache: none: " in caplog.text and "of the disk of data.cache_dir" in caplog.text


# Several runs


def train_for_two_epochs(photos: Path, start, answers) -> None:
    loaders = make_loaders(photos, "disk")
    start.wait(60)
    sums = [checksum(loaders.train, epoch) for epoch in (0, 1)]
    store = loaders.train.dataset.source.store
    answers.put((sums, store.count(), store.first_damaged, store.stopped, store.num_bytes))


def checksum(loader: BatchLoader, epoch: int) -> int:
    return zlib.crc32(pixels(loader, epoch).numpy().tobytes())


def test_two_runs_build_one_cache_at_once(photos):
    expected = make_loaders(photos, "ram").train
    sums = [checksum(expected, epoch) for epoch in (0, 1)]
    start, answers = FORK.Barrier(2), FORK.SimpleQueue()
    runs = [FORK.Process(target=train_for_two_epochs, args=(photos, start, answers)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    size = expected.dataset.source.store.num_bytes
    for _ in runs:
        *found, num_bytes = answers.get()
        assert found == [sums, 18, None, 0]
        assert size < num_bytes < 2.2 * size  # at worst each stored what the other did
    assert len(list((photos.parent / "caches").glob("*.images"))) == 2  # train and val
    third = make_loaders(photos, "disk").train
    assert third.dataset.source.store.count() == 18 and checksum(third, 0) == sums[0]


def test_a_run_killed_in_its_first_epoch_leaves_what_the_next_goes_on_with(photos):
    batches = FORK.Semaphore(0)

    def train() -> None:
        for _ in make_loaders(photos, "disk").train.epoch(0):
            batches.release()
            time.sleep(0.05)

    run = FORK.Process(target=train)
    run.start()
    for _ in range(2):
        assert batches.acquire(timeout=60)
    os.kill(run.pid, signal.SIGKILL)
    run.join(30)
    loaders = make_loaders(photos, "disk")
    store = loaders.train.dataset.source.store
    assert 10 <= store.count() < 18
    assert checksum(loaders.train, 0) == checksum(make_loaders(photos, "ram").train, 0)
    assert store.count() == 18 and store.first_damaged is None


def test_the_form_for_crops_is_an_evaluation_transform(photos):
    source = make_loaders(photos, "ram", resize=Resize.squash).train.dataset.source
    assert isinstance(source.resize, EvalTransform) and source.resize.resize == "resize_crop"


class GroupOfTwo(ProcessGroup):
    """Rank 0 of two ranks on one machine; `theirs` is what rank 1 gathers."""

    world_size = 2
    local_rank = 0

    def all_gather(self, value):
        self.gathered = [value, (self.node, None)]
        return self.gathered


class SecondRank(ProcessGroup):
    world_size = 2
    local_rank = 1

    def __init__(self, gathered):
        self.gathered = gathered

    def all_gather(self, value):
        assert value == (self.node, None)
        return self.gathered


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_ranks_of_a_machine_share_one_cache(photos, cache):
    config = make_config(photos, cache)
    first = GroupOfTwo()
    loaders = {}

    def open_second() -> None:  # the first rank waits here until the others have opened its files
        second = SecondRank(first.gathered)
        loaders[1] = build_loaders(config, build_splits(config.data), device=CPU, world=second)

    first.barrier = open_second
    loaders[0] = build_loaders(config, build_splits(config.data), device=CPU, world=first)
    stores = [loaders[rank].train.dataset.source.store for rank in (0, 1)]
    for index in range(18):
        loaders[0].train.dataset.source.read(index)
    assert [store.count() for store in stores] == [18, 18]
    assert np.array_equal(stores[1].get(7), stores[0].get(7))
    assert stores[0].file.path == stores[1].file.path
    assert Path(stores[0].file.path).exists() == (cache == "disk")  # nothing is left in shared memory
