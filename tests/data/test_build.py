"""The loaders of a run, from its config."""

import numpy as np
import pytest
import torch
from made_images import NoisySource

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import Balance, CustomConfig, DigitsConfig, OnBadImage, Resize
from cvtrain.config.schema.root import Config
from cvtrain.data.build import BatchLoader, available_cores, build_eval_loader, build_loaders, resolve_num_workers
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


def test_limits() -> None:
    config = make_config()
    config.trainer.limit_train_batches, config.trainer.limit_val_batches = 2, 1
    loaders = build_loaders(config, make_splits(), device=CPU)
    assert loaders.train.num_batches == 2 and [len(batch) for batch in indices(loaders.train)] == [4, 4]
    assert indices(loaders.val) == [[0, 2, 5, 7]]  # spread over the split


def test_overfitting_shows_one_mixed_batch_to_both() -> None:
    config = make_config()
    config.trainer.overfit_one_batch = True
    config.augment = AugmentConfig(name="flip", transforms=[{"RandomHorizontalFlip": {"p": 1.0}}])
    loaders = build_loaders(config, make_splits(), device=CPU)
    first = sorted(indices(build_loaders(make_config(), make_splits(), device=CPU).train)[0])
    assert indices(loaders.train) == indices(loaders.train, epoch=5) == indices(loaders.val) == [first]
    assert loaders.test is None
    train, val = next(iter(loaders.train.epoch(3))), next(iter(loaders.val.epoch(0)))
    assert torch.equal(train.images, val.images)


def test_oversampling_draws_rare_classes_more_often() -> None:
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


def test_a_single_split_can_be_loaded() -> None:
    loader = build_eval_loader(make_config().data, NoisySource(), device=CPU, batch_size=9)
    assert [len(batch) for batch in indices(loader)] == [9, 8]


@pytest.mark.parametrize(("granted", "cores"), [("1", 1), ("100000", None), ("0", None), ("(null)", None)])
def test_slurm_says_how_many_cores_are_the_jobs(monkeypatch, granted, cores) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    of_process = available_cores()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert available_cores() == (cores or of_process)


def test_number_of_workers() -> None:
    assert resolve_num_workers("auto", is_ready_made=True) == 0
    assert resolve_num_workers("auto", is_ready_made=False) == min(available_cores(), 8) >= 1
    assert resolve_num_workers(5, is_ready_made=True) == 5
    for wrong in ("many", -1):
        with pytest.raises(ConfigError, match=f"data.num_workers={wrong}: must be auto or a whole number from 0 on"):
            resolve_num_workers(wrong, is_ready_made=False)
    digits = Config(data=DigitsConfig(image_size=SIZE), augment=AugmentConfig(name="none"))
    source = ArraySource(images=np.zeros((9, SIZE, SIZE, 3), np.uint8), labels=np.zeros(9, np.int64), prefix="digits")
    loaders = build_loaders(digits, Splits(train=source, val=source, test=None, classes=("0",)), device=CPU)
    assert loaders.train.num_workers == 0
