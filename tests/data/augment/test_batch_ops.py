"""Batch transforms of our own: against one image at a time, padded and cut by torch."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.transform_names import BATCH_OP_NAMES
from cvtrain.data.augment import build_batch_transform
from cvtrain.data.augment.batch_ops import BATCH_OPS, Cutout, Flip, ShiftCrop, shift_images

PAD_NAMES = {"reflect": "reflect", "edge": "replicate", "constant": "constant"}


def made_images(count=16, height=9, width=11):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def build(*transforms, image_size=8):
    augment = AugmentConfig(name="test", batch_transforms=list(transforms))
    return build_batch_transform(augment, num_classes=4, image_size=image_size)


@pytest.mark.parametrize("mode", PAD_NAMES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shifts_are_those_of_padding_and_cutting_each_image(mode, memory_format):
    images = made_images().contiguous(memory_format=memory_format)
    down, right = torch.randint(-4, 5, (2, 16), generator=torch.Generator().manual_seed(1))
    shifted = shift_images(images, down, right, mode)
    assert shifted.is_contiguous(memory_format=memory_format)
    for index, (image, row, column) in enumerate(zip(images, down.tolist(), right.tolist(), strict=True)):
        padded = functional.pad(image[None], (4, 4, 4, 4), mode=PAD_NAMES[mode])[0]
        assert torch.equal(shifted[index], padded[:, 4 + row : 13 + row, 4 + column : 15 + column])


def test_every_shift_comes_up_equally_often():
    marked = torch.zeros(20_000, 1, 5, 5)
    marked[:, :, 2, 2] = 1
    torch.manual_seed(0)
    places = ShiftCrop(2, "constant")(marked)[:, 0].mean(0)  # (5, 5): each shift puts the mark elsewhere
    assert torch.allclose(places, torch.full((5, 5), 0.04), atol=0.006)  # four standard deviations


def test_flips_are_whole_images_with_the_probability():
    images = made_images(4000)
    torch.manual_seed(0)
    flipped = Flip(0.3)(images)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    is_same = (flipped == images).flatten(1).all(1)
    assert bool((is_flipped ^ is_same).all())
    assert is_flipped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(Flip(1.0)(images), images.flip(3)) and torch.equal(Flip(0.0)(images), images)


def test_cutout_is_a_square_that_borders_may_cut_off():
    images = torch.zeros(3000, 2, 12, 12)
    torch.manual_seed(0)
    cut = Cutout(5, value=0.25)(images)
    assert torch.equal(cut[:, 0], cut[:, 1])
    mask = cut[:, 0] == 0.25
    heights, widths = mask.any(2).sum(1), mask.any(1).sum(1)
    assert torch.equal(mask.flatten(1).sum(1), heights * widths)
    assert set(heights.tolist()) == {3, 4, 5}  # centres 0 to 11: at a border two rows at most are cut off
    assert torch.equal(Cutout(5, p=0.0)(images), images)
    assert (Cutout(5, p=0.2)(images) > 0).flatten(1).any(1).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_a_batch_is_a_function_of_its_seed():
    transform = build({"ShiftCrop": {"padding": "25%"}}, "Flip", {"Cutout": {"size": 3}}, "RandomInvert")
    images, labels = made_images(height=8, width=8), torch.zeros(16, dtype=torch.int64)
    state = torch.get_rng_state()
    one, other = transform(images, labels, 5)[0], transform(images, labels, 5)[0]
    assert torch.equal(one, other) and not torch.equal(one, transform(images, labels, 6)[0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"ShiftCrop": {"padding": 8}}, "padding=8 has to be smaller than the image"),
        ({"ShiftCrop": {"padding": 0}}, "padding=0 has to be at least 1"),
        ({"ShiftCrop": {"padding": 2, "padding_mode": "mirror"}}, "one of reflect, edge, constant"),
        ("ShiftCrop", "ShiftCrop of cvtrain needs padding"),
        ({"Cutout": {"sise": 2}}, "closest: size"),
        ({"Flip": {"p": 2}}, r"p=2 has to be in 0..1"),
        ({"ImageSequential": {"transforms": ["Flip"]}}, "Flip is none of kornia's"),
        ("Flop", "closest: Flip"),
    ],
)
def test_wrong_lists_are_told(transform, message):
    with pytest.raises(ConfigError, match=message):
        build(transform)


def test_the_names_are_those_of_the_config():
    assert set(BATCH_OPS) == set(BATCH_OP_NAMES)


def test_kornia_is_not_loaded_for_them():
    program = (
        "import sys; from cvtrain.config.schema.augment import AugmentConfig; "
        "from cvtrain.data.augment import build_batch_transform; "
        "build_batch_transform(AugmentConfig(name='x', batch_transforms=['Flip']), num_classes=2, image_size=8); "
        "print('kornia' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
