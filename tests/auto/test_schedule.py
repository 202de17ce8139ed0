"""Image size and epochs by measured speeds."""

import numpy as np
import pytest

from cvtrain.auto.schedule import Pace, choose_image_size, sample_images
from cvtrain.data.sources.source import ArraySource


def test_seconds_of_an_epoch_and_of_what_is_around_it():
    pace = Pace(read=0.01, forward=0.02, step=0.05)
    assert pace.frozen_seconds(100, 50) == pytest.approx(150 * 0.03)
    assert pace.epoch_seconds(100, 50) == pytest.approx(150 * 0.03 + 100 * 0.05)
    assert pace.closing_seconds(50) == pytest.approx(3 * 50 * 0.03)


def test_what_a_network_computes_grows_with_the_pixels():
    assert Pace(0.01, 0.02, 0.08).at_size(112, 224) == Pace(0.01, 0.005, 0.02)


@pytest.mark.parametrize(
    ("short_side", "seconds", "size"),
    [
        # At 224: 2 * (4 + 100 * 0.02) + 2 * (2 + 80 * 0.04) + 3 * 20 * 0.02 = 23.6 s, at 128: 8 + 15.6 * 0.33 = 13.1 s
        (100, 23.7, 224),
        (100, 23.5, 192),
        (100, 13.2, 128),
        (100, 13.0, 224),  # no size fits: the head's run at least is as good as it can be
        (129, 13.2, 224),  # 128 would be less than what the images show
        (500, 13.2, 224),
    ],
)
def test_smaller_images_where_time_is_short(short_side, seconds, size):
    pace = Pace(read=0.0, forward=0.02, step=0.04)
    found = choose_image_size(pace, native=224, short_side=short_side, num_train=80, num_val=20, seconds=seconds)
    assert found == size


def test_images_are_sampled_evenly():
    source = ArraySource(images=np.zeros((100, 20, 30, 3), np.uint8), labels=np.zeros(100, np.int64), prefix="x")
    ticks = iter([0.0, 3.2])
    assert sample_images(source, now=lambda: next(ticks)) == (20, pytest.approx(0.1))
