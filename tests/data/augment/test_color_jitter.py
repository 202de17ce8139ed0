"""Colour jitter by OpenCV: torchvision's random numbers, and its pixels within three levels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from cvtrain.data.augment.color_jitter import find_colour_jitter
from cvtrain.data.augment.pipeline import Step
from cvtrain.data.augment.torchvision import TorchvisionChain


def chain_of(*transforms: v2.Transform) -> TorchvisionChain:
    return TorchvisionChain([Step(f"augment.transforms[{n}]", step) for n, step in enumerate(transforms)])


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
        {"brightness": 0.9},
        {"contrast": [0.1, 3.0]},
        {"saturation": [0.0, 4.0]},
        {"contrast": 0.5, "saturation": 0.5},
    ],
)
def test_pixels_are_torchvisions_within_three_levels(settings: dict) -> None:
    image, theirs = noise(40, 50), v2.ColorJitter(**settings)
    ours = chain_of(theirs)
    image[:10], image[10:20] = 0, 255
    levels = []
    for seed in range(30):
        torch.manual_seed(seed)
        expected = theirs(torch.from_numpy(image).permute(2, 0, 1))
        levels.append((ours(image, seed).int() - expected.int()).abs())
    # One level for each of three roundings; a factor of 4 makes more of it.
    allowed = 4 if settings.get("saturation") == [0.0, 4.0] else 3
    assert max(int(difference.max()) for difference in levels) <= allowed
    assert torch.stack(levels).float().mean() < 0.6


def test_what_follows_draws_as_if_torchvision_had_done_it() -> None:
    image = noise(40, 50)
    transforms = [v2.ColorJitter(0.1, 0.1, 0.1), v2.RandomErasing(p=1.0, value=7)]
    for seed in range(10):
        torch.manual_seed(seed)
        expected = v2.Compose(transforms)(torch.from_numpy(image).permute(2, 0, 1))
        ours = chain_of(*transforms)(image, seed)
        erased = (expected == 7).all(0)  # the box, and hardly a pixel more
        assert erased.any() and torch.equal(erased, (ours == 7).all(0))


def test_grey_images_and_hue_are_torchvisions_own() -> None:
    grey, jitter = noise(20, 20, 1), v2.ColorJitter(0.5, 0.5, 0.5)
    torch.manual_seed(3)
    assert torch.equal(chain_of(jitter)(grey, 3), jitter(torch.from_numpy(grey).permute(2, 0, 1)))
    assert find_colour_jitter(Step("a", v2.ColorJitter(0.1, hue=0.1))) is None
    assert find_colour_jitter(Step("a", v2.RandomGrayscale())) is None


def test_the_image_stays_as_it_is() -> None:
    image = noise(20, 20)
    given = image.copy()
    chain_of(v2.ColorJitter(0.5, 0.5, 0.5))(image, 1)
    assert np.array_equal(image, given)
