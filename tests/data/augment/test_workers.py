"""A batch is the same whoever makes it: this process, one worker or three, before or after other work."""

import random

import numpy as np
import pytest
import torch

from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.data.augment import build_batch_transform, build_train_transform
from cvtrain.data.build import BatchDataset, BatchLoader, EpochSampler
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.sources.source import ArraySource
from cvtrain.runtime.rng import derive_seed

SEED = 7
# Three workers on a machine of two cores are what is meant here.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

# Each list draws from every generator that its library has: sizes, choices, noise.
AUGMENTS = {
    "torchvision": AugmentConfig(
        name="test",
        transforms=[
            "RandomResizedCrop",
            {"RandomApply": {"transforms": ["AugMix"]}},
            {"RandomChoice": {"transforms": ["RandAugment", {"GaussianNoise": {"sigma": 0.2}}]}},
            {"RandomErasing": {"p": 0.5}},
        ],
    ),
    "albumentations": AugmentConfig(
        name="test",
        library=AugmentLibrary.albumentations,
        transforms=[
            "RandomResizedCrop",
            {"OneOf": {"p": 0.9, "transforms": ["GaussNoise", "ISONoise", "ElasticTransform"]}},
            {"SomeOf": {"n": 2, "transforms": ["HorizontalFlip", "Affine", "CoarseDropout"]}},
            "AdditiveNoise",
        ],
    ),
    "kornia": AugmentConfig(
        name="test",
        transforms=["RandomHorizontalFlip"],
        batch_transforms=[
            {"ColorJitter": {"brightness": 0.3}},
            "RandomPlasmaShadow",
            {"RandomGaussianNoise": {"std": 0.1}},
        ],
        mixup_alpha=0.4,
        cutmix_alpha=1.0,
    ),
}


def source():
    images = np.random.default_rng(0).integers(0, 256, (20, 24, 28, 3), dtype=np.uint8)
    return ArraySource(images=images, labels=np.arange(20) % 4, prefix="noise")


def epoch_of(augment, num_workers, epoch, disturbance):
    resize = build_eval_transform(image_size=16, resize="squash", crop_fraction=1.0)
    transform = build_train_transform(augment, image_size=16, channels=3, eval_transform=resize)
    batch_transform = build_batch_transform(augment, num_classes=4, image_size=16)
    data = source()
    for index in range(disturbance):  # the workers are forked after use in this process
        transform(data.read(index), index)
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    loader = BatchLoader(
        dataset=BatchDataset(
            source=data, eval_transform=resize, train_transform=transform, image_size=16, channels=3, seed=SEED
        ),
        plan=EpochSampler(20, 6, SEED, shuffle=True),
        num_workers=num_workers,
    )
    batches = []
    for batch in loader.epoch(epoch):
        seed = derive_seed(SEED, epoch, len(batches))
        batches.append((*batch_transform(batch.images.float() / 255, batch.labels, seed), batch.indices))
    loader.close()
    return batches


@pytest.mark.parametrize("library", AUGMENTS)
def test_batches_are_equal_for_any_number_of_workers(library):
    augment = AUGMENTS[library]
    expected = epoch_of(augment, num_workers=0, epoch=3, disturbance=0)
    assert [len(images) for images, _, _ in expected] == [6, 6, 6, 2]
    for num_workers, disturbance in ((0, 2), (1, 3), (3, 5)):
        found = epoch_of(augment, num_workers, 3, disturbance)
        for ours, theirs in zip(expected, found, strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("library", AUGMENTS)
def test_another_epoch_has_other_pixels_of_the_same_images(library):
    first, second = (
        {
            int(index): image
            for images, _, indices in epoch_of(AUGMENTS[library], 0, epoch, 0)
            for index, image in zip(indices, images, strict=True)
        }
        for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(20))
    assert sum(torch.equal(first[index], second[index]) for index in range(20)) == 0
