"""What each group file of conf/augment holds, and that it can be built for digits and for photos."""

import logging

import numpy as np
import pytest
import torch
import yaml

from cvtrain.config.composer import conf_dir
from cvtrain.config.schema.augment import AugmentConfig, AugmentLibrary
from cvtrain.data.augment import build_batch_transform, build_train_transform
from cvtrain.data.images.resize import build_eval_transform

PRESETS = ("none", "light", "standard", "strong", "torchvision", "albumentations", "kornia", "small_batch")
# What works on whole batches leaves nothing to do per image.
BY_BATCH = ("small_batch",)


def load(name):
    values = yaml.safe_load((conf_dir() / "augment" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert values.pop("defaults") == ["/schema/augment/augment@_here_", "_self_"]
    values["library"] = AugmentLibrary(values.get("library", "torchvision"))
    return AugmentConfig(**values)


def build(name, image_size, channels):
    resize = build_eval_transform(image_size=image_size, resize="resize_crop", crop_fraction=0.875)
    augment = load(name)
    return (
        build_train_transform(augment, image_size=image_size, channels=channels, eval_transform=resize),
        build_batch_transform(augment, num_classes=10, image_size=image_size, channels=channels),
    )


def test_every_file_is_tested():
    assert sorted(path.stem for path in (conf_dir() / "augment").glob("*.yaml")) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_called_as_its_file(name):
    assert load(name).name == name


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", PRESETS)
def test_every_part_of_a_preset_changes_pixels_and_warns_of_nothing(name, image_size, caplog):
    with caplog.at_level(logging.WARNING):
        per_image, per_batch = build(name, image_size, channels=3)
    assert [record.message for record in caplog.records] == []
    image = np.random.default_rng(0).integers(0, 256, (3 * image_size, 2 * image_size, 3), dtype=np.uint8)
    if name == "none":
        assert per_image is None
        assert not per_batch.active
        return
    if name in BY_BATCH:
        assert per_image is None
        assert per_batch.active
        return
    results = [per_image(image, seed) for seed in range(8)]
    assert {tuple(result.shape) for result in results} == {(3, image_size, image_size)}
    assert len({result.numpy().tobytes() for result in results}) >= 6


@pytest.mark.parametrize("name", ["none", "light", "standard", "strong", "torchvision", "albumentations"])
def test_presets_work_on_grey_digits(name):
    per_image, _ = build(name, 8, channels=1)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    if per_image is not None:
        assert per_image(image, 0).shape == (1, 8, 8)


def test_light_shifts_by_an_eighth_at_most():
    transform, _ = build("light", 32, channels=3)
    image = np.zeros((32, 32, 3), np.uint8)
    image[16, 16] = 255
    places = np.array([np.argwhere(transform(image, seed)[0].numpy())[0] for seed in range(300)])
    # Flipped, column 16 is 15.
    assert places.min(0).tolist() == [12, 11]
    assert places.max(0).tolist() == [20, 20]


def test_only_strong_mixes():
    assert {name for name in PRESETS if build(name, 32, channels=3)[1].mixes} == {"strong"}


def test_standard_flips_half_of_the_images():
    transform, _ = build("standard", 32, channels=3)
    ramp = np.tile(np.linspace(50, 200, 96).astype(np.uint8)[None, :, None], (96, 1, 3))
    flipped = sum(int(image[0, 16, 0] > image[0, 16, 31]) for image in (transform(ramp, seed) for seed in range(400)))
    assert abs(flipped - 200) < 50  # five standard deviations of Binomial(400, 1/2)


def test_build_leaves_the_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name in PRESETS:
        build(name, 32, channels=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
