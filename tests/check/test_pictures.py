"""Pictures unlike the rest: found in a set that is otherwise uniform, and none in a uniform set."""

import numpy as np
import pytest

from cvtrain.check.files import file_findings
from cvtrain.check.measure import Measurements
from cvtrain.check.pictures import MIN_IMAGES, picture_findings, robust_deviations


@pytest.fixture
def measured():
    """40 images of 100 x 150 around a grey value of 120."""
    rng = np.random.default_rng(0)
    made = Measurements.empty(40)
    made.heights[:], made.widths[:] = 100, 150
    made.means[:], made.contrasts[:] = rng.normal(120, 10, 40), rng.normal(50, 5, 40)
    made.sharpness[:] = rng.normal(0.9, 0.1, 40)
    return made


def found(measured):
    return {(each.check, each.index) for each in picture_findings(None, measured)}


def test_deviations_are_those_of_a_normal_distribution():
    values = np.random.default_rng(0).normal(5, 3, 100_001)
    naive = (values - 5) / 3
    assert np.abs(robust_deviations(values) - naive).max() < 0.06
    assert robust_deviations(np.full(5, 7.0)).tolist() == [0] * 5


def test_a_uniform_set_has_no_outliers(measured):
    assert found(measured) == set()


def test_each_outlier_is_found(measured):
    measured.means[0], measured.means[1] = 12, 240
    measured.contrasts[2] = 1.5
    measured.sharpness[3] = 0.2
    measured.widths[4], measured.heights[4] = 15, 10
    measured.widths[5], measured.heights[5] = 600, 30
    measured.widths[6], measured.heights[6] = 100, 150  # upright, and not odd
    assert found(measured) == {
        ("dark", 0),
        ("light", 1),
        ("low_information", 2),
        ("blurred", 3),
        ("odd_size", 4),
        ("odd_aspect", 5),
    }


def test_a_dark_set_is_not_dark(measured):
    measured.means[:] -= 95
    assert found(measured) == set()


def test_few_images_have_no_median(measured):
    few = Measurements.empty(MIN_IMAGES - 1)
    few.heights[:] = few.widths[:] = 9
    few.means[0] = 250
    assert found(few) == set()


class Named:
    def name(self, index):
        return ("a.jpg", "b.png", "c.JPEG", "d.dat", "e.png")[index]


def test_extensions_that_lie():
    made = Measurements.empty(5)
    made.heights[:4] = 5
    made.format_names = ["", "JPEG", "PNG"]
    made.formats[:] = [2, 2, 1, 1, 1]
    made.errors = {4: "truncated"}
    assert [(each.check, each.index, each.detail) for each in file_findings(Named(), made)] == [
        ("unreadable", 4, "truncated"),
        ("wrong_extension", 0, "a PNG file named .jpg"),
    ]
