"""The comparison of an export with cvtrain, in numbers."""

import math

import numpy as np
import pytest

from cvtrain.export.proof import Answers, Limits, Proof, compare
from cvtrain.export.witness import spread
from cvtrain.metrics import wilson_interval


def answers(probs, pixel=7):
    pixels = np.full((1, 2, 2, 3), pixel, np.uint8)
    return Answers(np.array(probs, np.float32), pixels, {"1": 2.0, "8": 3.0})


def proof_of(**changes):
    values = {
        "num_images": 200,
        "num_agreeing": 199,
        "difference": 5e-4,
        "pixel_difference": 0,
        "num_right": (190, 187),
        "latency_ms": {},
    }
    return Proof(**{**values, **changes})


@pytest.mark.parametrize(
    ("num_right", "num_images", "expected"),
    # Newcombe (1998), table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (29, 29, (0.8830, 1.0))],
)
def test_wilson_interval(num_right, num_images, expected):
    assert wilson_interval(num_right, num_images) == pytest.approx(expected, abs=5e-5)


def test_comparison_counts():
    ours = answers([[0.9, 0.1], [0.4, 0.6], [0.51, 0.49], [0.2, 0.8]], pixel=7)
    theirs = answers([[0.9, 0.1], [0.4, 0.6], [0.48, 0.52], [0.3, 0.7]], pixel=9)
    proof = compare(ours, theirs, np.array([0, 0, 0, 1]))
    assert (proof.num_images, proof.num_agreeing, proof.num_right) == (4, 3, (3, 2))
    assert proof.difference == pytest.approx(0.1) and proof.pixel_difference == 2
    assert proof.latency_ms == {"1": (2.0, 2.0), "8": (3.0, 3.0)}
    assert compare(ours, theirs, None).num_right is None
    lines = proof.lines("model.onnx")
    assert lines[0].split() == ["cvtrain", "model.onnx"]
    assert lines[1].endswith("75.00% (3 of 4)")
    assert lines[4].endswith("0.7500 (0.3006 to 0.9544)  0.5000 (0.1500 to 0.8500)")


def test_numbers_that_are_none_differ():
    proof = compare(answers([[0.5, 0.5]]), answers([[math.nan, 0.5]]), None)
    assert proof.difference == math.inf
    assert proof.failure(Limits(difference=1e-4)) == "a probability differs by inf, more than 0.0001"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), None),
        (Limits(difference=5e-4, agreement=0.995, drop=0.015), None),
        (Limits(difference=1e-4), "a probability differs by 0.0005, more than 0.0001"),
        (Limits(agreement=0.996), "99.50% of the images get the same class, fewer than 99.60%"),
        (Limits(drop=0.01), "the accuracy falls by 0.0150, more than 0.01"),
    ],
)
def test_limits(limits, expected):
    assert proof_of().failure(limits) == expected


def test_a_higher_accuracy_and_none_at_all_are_no_drop():
    assert proof_of(num_right=(187, 190)).failure(Limits(drop=0.0)) is None
    assert proof_of(num_right=None).failure(Limits(drop=0.0)) is None


def test_images_of_the_proof_are_spread_over_all():
    assert spread(3, 256).tolist() == [0, 1, 2]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert spread(10**6, 256).size == 256
