"""Crop and flip without torchvision's wrapping: its bits, its random numbers, and only where it is the same thing."""

import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from cvtrain.data.augment.crop_flip import find_crop_flip
from cvtrain.data.augment.pipeline import Step
from cvtrain.data.augment.torchvision import TorchvisionChain

# torchvision resizes uint8 directly on such processors, elsewhere by way of floats.
NATIVE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def chain_of(*transforms: v2.Transform) -> TorchvisionChain:
    return TorchvisionChain([Step(f"augment.transforms[{n}]", step) for n, step in enumerate(transforms)])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.skipif(not NATIVE, reason="torchvision takes another way here")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 85), (24, 24), (120, 7), (7, 120), (3, 2), (1, 1)])
@pytest.mark.parametrize("flip", [None, 0.0, 0.5, 1.0])
def test_pixels_are_torchvisions_to_the_bit(channels: int, shape: tuple[int, int], flip: float | None) -> None:
    transforms = [v2.RandomResizedCrop(24, scale=(0.2, 1.0), ratio=(0.5, 2.0))]
    transforms += [] if flip is None else [v2.RandomHorizontalFlip(flip)]
    image, ours, theirs = noise(*shape, channels), chain_of(*transforms), v2.Compose(transforms)
    image.flags.writeable = False  # as the cache's
    for seed in (*range(20), 2**64 - 1):
        torch.manual_seed(seed)
        expected = theirs(torch.from_numpy(image.copy()).permute(2, 0, 1))
        assert torch.equal(ours(image, seed), expected)


@pytest.mark.skipif(not NATIVE, reason="torchvision takes another way here")
def test_what_follows_draws_as_if_torchvision_had_cropped() -> None:
    transforms = [v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), v2.RandomErasing(p=1.0)]
    image, ours = noise(40, 50, 3), chain_of(*transforms)
    for seed in range(10):
        torch.manual_seed(seed)
        assert torch.equal(ours(image, seed), v2.Compose(transforms)(torch.from_numpy(image).permute(2, 0, 1)))


def test_the_generator_goes_on_as_before_and_the_image_stays() -> None:
    chain, image = chain_of(v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()), noise(40, 50, 3)
    state, given = torch.get_rng_state(), image.copy()
    result = chain(image, 3)
    result.zero_()
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(image, given)
    assert torch.equal(pickle.loads(pickle.dumps(chain))(image, 4), chain(image, 4))


@pytest.mark.parametrize(
    ("transforms", "num_steps"),
    [
        ([v2.RandomResizedCrop(16)], 1),
        ([v2.RandomResizedCrop(16), v2.RandomVerticalFlip()], 1),
        ([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.RandomHorizontalFlip()], 2),
        ([v2.RandomHorizontalFlip(), v2.RandomResizedCrop(16)], None),
        ([v2.RandomResizedCrop((16, 17))], None),
        ([v2.RandomResizedCrop(16, antialias=False)], None),
        ([v2.RandomResizedCrop(16, interpolation=InterpolationMode.BICUBIC)], None),
        ([v2.RandomCrop(16)], None),
        ([], None),
    ],
)
def test_it_stands_only_for_what_it_equals(transforms: list[v2.Transform], num_steps: int | None) -> None:
    found = find_crop_flip(chain_of(*transforms).steps)
    assert (None if found is None else found.num_steps) == num_steps
