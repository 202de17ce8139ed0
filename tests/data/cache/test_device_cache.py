"""Splits kept on the device: equal to the bit to the ordinary loader, in batches, bad images and errors."""

import logging

import numpy as np
import pytest
import torch
from made_images import NoisySource
from made_loaders import children

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import Balance, CustomConfig, DatasetConfig, DeviceCache, OnBadImage
from cvtrain.config.schema.root import Config
from cvtrain.data import build as loading
from cvtrain.data.build import Loaders, build_loaders
from cvtrain.data.cache import device_cache as resident
from cvtrain.data.cache.device_cache import DeviceLoader, can_be_resident, fits_on_device
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.sources.source import ArraySource, Splits

CPU = torch.device("cpu")
SIZE = 6


class DamagedSource(NoisySource):
    """Images 3, 4 and 11 cannot be read."""

    def read(self, index: int) -> np.ndarray:
        if index in (3, 4, 11):
            raise BadImageError(self.name(index), "damaged")
        return super().read(index)


def array_source(count: int) -> ArraySource:
    images = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return ArraySource(images=images, labels=np.arange(count) % 3, prefix="made")


def make_loaders(
    train, wanted: str, device: torch.device = CPU, *, transforms=(), limit=None, source=None, **data
) -> Loaders:
    config = Config(data=source or CustomConfig(root="", image_size=SIZE, batch_size=4, num_workers=0), seed=3)
    config.augment = AugmentConfig(name="mine", transforms=list(transforms))
    config.data.device_cache = DeviceCache(wanted)
    config.trainer.limit_train_batches = limit
    for key, value in data.items():
        setattr(config.data, key, value)
    splits = Splits(train=train, val=array_source(10), test=array_source(5), classes=("ant", "bee", "cat"))
    return build_loaders(config, splits, device=device)


def assert_equal_batches(ordinary: Loaders, kept: Loaders) -> None:
    for split in ("train", "val", "test"):
        for epoch, start in ((0, 0), (1, 0), (2, 2)):
            pairs = zip(
                ordinary.parts()[split].epoch(epoch, start), kept.parts()[split].epoch(epoch, start), strict=True
            )
            for one, other in pairs:
                assert torch.equal(one.images, other.images.cpu()) and torch.equal(one.labels, other.labels.cpu())
                assert torch.equal(one.indices, other.indices)
                assert (one.epoch, one.number) == (other.epoch, other.number)
                assert [bad.index for bad in one.bad] == [bad.index for bad in other.bad]
        assert ordinary.parts()[split].bad_images.keys() == kept.parts()[split].bad_images.keys()


@pytest.mark.parametrize("source", [array_source(17), NoisySource(count=17)], ids=["array", "files"])
@pytest.mark.parametrize("balance", [Balance.none, Balance.oversample])
def test_batches_equal_an_ordinary_loader(source, balance):
    kept = make_loaders(source, "always", balance=balance)
    assert isinstance(kept.train, DeviceLoader) and isinstance(kept.val, DeviceLoader)
    assert not isinstance(kept.test, DeviceLoader)  # it is read once
    assert_equal_batches(make_loaders(source, "never", balance=balance), kept)


def test_workers_of_the_filler_end_with_it():
    kept = make_loaders(NoisySource(count=17), "always", num_workers=2)
    ordinary = make_loaders(NoisySource(count=17), "never")
    before = children()
    list(kept.train.epoch(0))
    assert children() == before
    assert_equal_batches(ordinary, kept)
    kept.close()


def test_bad_images_are_left_out_of_the_same_batches(caplog):
    data = {"on_bad_image": OnBadImage.skip}
    with caplog.at_level(logging.WARNING):
        kept = make_loaders(DamagedSource(count=17), "always", **data)
        assert [len(batch) for batch in kept.train.epoch(0)] != [4, 4, 4, 4, 1]
    assert sum("is left out" in record.message for record in caplog.records) == 1
    assert_equal_batches(make_loaders(DamagedSource(count=17), "never", **data), kept)
    with pytest.raises(BadImageError, match="damaged"):
        list(make_loaders(DamagedSource(count=17), "always").train.epoch(0))


def test_what_is_not_the_same_in_each_epoch_is_not_kept(caplog):
    with caplog.at_level(logging.WARNING):
        flipped = make_loaders(array_source(17), "always", transforms=["RandomHorizontalFlip"])
        limited = make_loaders(array_source(17), "always", limit=2)
    for loaders in (flipped, limited):
        assert not isinstance(loaders.train, DeviceLoader) and isinstance(loaders.val, DeviceLoader)
    told = [record.message for record in caplog.records]
    assert "augment=small_batch" in told[0] and "does not take all" in told[1]


def test_a_dataset_of_the_users_is_not_held_to_its_first_epoch(monkeypatch):
    """Its items may differ from epoch to epoch; on a GPU `auto` would train all epochs on those of the first."""
    monkeypatch.setattr(loading, "fits_on_device", lambda wanted, *_: wanted is not DeviceCache.never)
    own = DatasetConfig(target="mine.Birds", image_size=SIZE, batch_size=4, num_workers=0)
    for wanted, kept in (("auto", False), ("always", True)):
        loaders = make_loaders(array_source(17), wanted, source=own)
        assert isinstance(loaders.train, DeviceLoader) == kept and isinstance(loaders.val, DeviceLoader)


def test_views_are_not_held_to_the_first():
    loader = make_loaders(array_source(17), "never").train
    assert can_be_resident(loader, loader.plan)
    loader.dataset.num_views = 2
    assert not can_be_resident(loader, loader.plan)


def test_auto_keeps_nothing_on_a_cpu_and_always_needs_room(monkeypatch):
    assert not isinstance(make_loaders(array_source(17), "auto").train, DeviceLoader)
    monkeypatch.setattr(resident, "free_memory", lambda: 1000)
    assert fits_on_device(DeviceCache.always, 1000, CPU)
    with pytest.raises(ConfigError, match=r"data\.device_cache=always: the images come to 0\.00 GiB, and cpu has"):
        fits_on_device(DeviceCache.always, 1001, CPU)


def test_filling_while_evaluating_leaves_tensors_that_can_train():
    loader = make_loaders(array_source(17), "always").train
    with torch.inference_mode():
        next(iter(loader.epoch(0)))
    images, _ = loader._filled
    assert not images.is_inference()


@pytest.mark.gpu
def test_a_gpu_keeps_a_small_set_by_itself():
    kept = make_loaders(array_source(17), "auto", torch.device("cuda:0"))
    assert isinstance(kept.train, DeviceLoader) and next(iter(kept.train.epoch(0))).images.is_cuda
    assert_equal_batches(make_loaders(array_source(17), "never"), kept)
