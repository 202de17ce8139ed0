"""The loaders of a run, from its config."""

import numpy as np
import pytest
import torch
from made_images import NoisySource

from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import Balance, CustomConfig, DigitsConfig, OnBadImage, Resize
from cvtrain.config.schema.root import Config
from cvtrain.data.build import BatchLoader, build_eval_loader, build_loaders
from cvtrain.data.images.reader import BadImageError
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.sources.source import ArraySource, Splits

CPU = torch.device("cpu")
SIZE = 6


def make_config(**data: object) -> Config:
    config = Config(data=CustomConfig(root="", image_size=SIZE, batch_size=4, num_workers=0), seed=3)
    config.augment = AugmentConfig(name="none")
    for key, value in data.items():
        setattr(config.data, key, value)
    return config


def make_splits(test: bool = True) -> Splits:
    return Splits(
        train=NoisySource(count=17),
        val=NoisySource(count=10),
        test=NoisySource(count=5) if test else None,
        classes=("ant", "bee", "cat"),
    )


def indices(loader: BatchLoader, epoch: int = 0) -> list[list[int]]:
    return [batch.indices.tolist() for batch in loader.epoch(epoch)]


def test_loaders_of_a_run() -> None:
    loaders = build_loaders(make_config(eval_batch_size=6), make_splits(), device=CPU)
    train = [index for batch in indices(loaders.train) for index in batch]
    assert sorted(train) == list(range(17)) and train != sorted(train)
    assert indices(loaders.val) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert loaders.test is not None and indices(loaders.test) == [[0, 1, 2, 3, 4]]
    assert (loaders.train.batch_size, loaders.train.num_batches, loaders.train.num_images) == (4, 5, 17)
    assert list(loaders.parts()) == ["train", "val", "test"]
    assert list(build_loaders(make_config(), make_splits(test=False), device=CPU).parts()) == ["train", "val"]


def test_training_is_augmented_and_evaluation_is_resized() -> None:
    config = make_config(resize=Resize.pad)
    config.augment = AugmentConfig(name="flip", transforms=[{"RandomHorizontalFlip": {"p": 1.0}}])
    loaders = build_loaders(config, make_splits(), device=CPU)
    resize = build_eval_transform(image_size=SIZE, resize="pad", crop_fraction=0.875)
    train, val = next(iter(loaders.train.epoch(0))), next(iter(loaders.val.epoch(0)))
    source = NoisySource()
    assert torch.equal(train.images[0], resize(source.read(int(train.indices[0]))).flip(2))
    assert torch.equal(val.images[3], resize(source.read(3)))


def test_limits_of_batches() -> None:
    config = make_config()
    config.trainer.limit_train_batches, config.trainer.limit_val_batches = 2, 1
    loaders = build_loaders(config, make_splits(), device=CPU)
    assert loaders.train.num_batches == 2 and [len(batch) for batch in indices(loaders.train)] == [4, 4]
    assert indices(loaders.val) == [[0, 2, 5, 7]]  # spread over the split


def test_overfitting_shows_one_batch_to_train_and_val() -> None:
    config = make_config()
    config.trainer.overfit_one_batch = True
    config.augment = AugmentConfig(name="flip", transforms=[{"RandomHorizontalFlip": {"p": 1.0}}])
    loaders = build_loaders(config, make_splits(), device=CPU)
    first = sorted(indices(build_loaders(make_config(), make_splits(), device=CPU).train)[0])
    assert indices(loaders.train) == indices(loaders.train, epoch=5) == indices(loaders.val) == [first]
    assert loaders.test is None
    train, val = next(iter(loaders.train.epoch(3))), next(iter(loaders.val.epoch(0)))
    assert torch.equal(train.images, val.images)


def test_oversampling_balances_the_classes() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    images = np.zeros((100, SIZE, SIZE, 3), np.uint8)
    source = ArraySource(images=images, labels=labels, prefix="toy")
    splits = Splits(train=source, val=source, test=None, classes=("often", "rare"))
    loader = build_loaders(make_config(balance=Balance.oversample), splits, device=CPU).train
    drawn = torch.cat([batch.labels for epoch in range(20) for batch in loader.epoch(epoch)])
    assert len(drawn) == 2000
    assert abs(int((drawn == 1).sum()) - 1000) < 4 * 22.4  # Binomial(2000, 1/2)


def test_bad_images_of_all_splits_are_collected() -> None:
    splits = Splits(train=NoisySource(bad=(2,)), val=NoisySource(bad=(3, 1)), test=None, classes=("a", "b", "c"))
    loaders = build_loaders(make_config(on_bad_image=OnBadImage.skip), splits, device=CPU)
    for loader in loaders.parts().values():
        list(loader.epoch(0))
    found = {split: list(loader.bad_images) for split, loader in loaders.parts().items()}
    assert found == {"train": [2], "val": [1, 3]}
    with pytest.raises(BadImageError):
        list(build_loaders(make_config(), splits, device=CPU).val.epoch(0))


def test_eval_loader_of_one_split() -> None:
    loader = build_eval_loader(make_config().data, NoisySource(), device=CPU, batch_size=9)
    assert [len(batch) for batch in indices(loader)] == [9, 8]


def test_auto_workers_are_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(num_workers="auto")
    with caplog.at_level("INFO", logger="cvtrain"):
        loaders = build_loaders(config, make_splits(), device=CPU)
        for epoch in range(2):
            list(loaders.train.epoch(epoch))
    assert [text for text in caplog.messages if "workers" in text] == ["data workers: 0 (auto: 17 images)"]
    caplog.clear()
    build_loaders(make_config(num_workers=1), make_splits(), device=CPU).close()
    assert not [text for text in caplog.messages if "workers" in text]


def test_images_in_memory_need_no_workers() -> None:
    digits = Config(data=DigitsConfig(image_size=SIZE), augment=AugmentConfig(name="none"))
    images = np.zeros((300, SIZE, SIZE, 3), np.uint8)
    source = ArraySource(images=images, labels=np.zeros(300, np.int64), prefix="digits")
    loaders = build_loaders(digits, Splits(train=source, val=source, test=None, classes=("0",)), device=CPU)
    assert loaders.train.num_workers == loaders.val.num_workers == 0
