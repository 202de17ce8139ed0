"""The deletion score: large for a map that is right, and a chance of 1 in 20 for one that means nothing."""

import pytest
import torch

from cvtrain.explain.deletion import NUM_RANDOM, Deletion, hottest, measure_deletion


def spot_score(images):
    """Counts on the 4 x 4 pixels at (2, 5) alone: their mean brightness."""
    return images[:, 0, 2:6, 5:9].double().mean((1, 2)) / 255


def spot_image():
    pixels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    pixels[:, 2:6, 5:9] = 255
    return pixels


def test_a_right_map_takes_the_class_away():
    heat = torch.zeros(16, 16)
    heat[2:6, 5:9] = 1.0
    found = measure_deletion(spot_score, spot_image(), heat)
    # The mean colour is 16 / 256 of white: 255 / 16 rounds to 16.
    assert found.hot_drop == pytest.approx(1 - 16 / 255)
    assert len(found.random_drops) == NUM_RANDOM == 19
    assert max(found.random_drops) < found.hot_drop  # a shifted spot covers a part of it at most
    assert found.score == pytest.approx(found.hot_drop - sum(found.random_drops) / 19)
    assert found.is_meaningful


def test_a_wrong_map_is_worth_nothing():
    heat = torch.zeros(16, 16)
    heat[10:14, 10:14] = 1.0
    found = measure_deletion(spot_score, spot_image(), heat)
    assert found.hot_drop == 0
    assert found.score <= 0
    assert not found.is_meaningful


def test_maps_of_noise_pass_in_one_of_twenty():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(24, 24, dtype=torch.float64, generator=generator)
    pixels = torch.randint(0, 256, (1, 24, 24), dtype=torch.uint8, generator=generator)

    def score(images):
        return (images[:, 0].double() * weights).mean((1, 2)) / 255

    num_passed = sum(
        measure_deletion(score, pixels, torch.rand(24, 24, generator=generator)).is_meaningful for _ in range(400)
    )
    # 20 expected of 400; the standard deviation is 4.4. A fall has to be above 0, too, which keeps some out.
    assert 4 <= num_passed <= 34


def test_even_maps_have_no_score():
    for value in (0.0, 1.0):
        assert measure_deletion(spot_score, spot_image(), torch.full((16, 16), value)) is None


def test_hottest_fifth():
    heat = torch.arange(100.0).view(10, 10)
    assert torch.equal(hottest(heat), heat >= 80)
    assert int(hottest((heat > 94).float()).sum()) == 5  # a pixel without heat is none of them
    assert int(hottest(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).sum()) == 1


def test_equal_drops_are_no_proof():
    assert not Deletion(0.5, (0.5,) * 19).is_meaningful
    assert Deletion(0.5, (0.5,) * 19).score == pytest.approx(0)
    assert not Deletion(-0.1, (-0.2,) * 19).is_meaningful
