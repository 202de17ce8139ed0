"""Pairs of thumbnails: what the search finds is what comparing all pairs would find."""

import numpy as np
import pytest
from made_sets import picture

from cvtrain.check import search
from cvtrain.check.measure import measure_pixels
from cvtrain.check.search import (
    MAX_BUCKET,
    MIN_CORRELATION,
    ORIENTATIONS,
    find_candidates,
    inverse,
    orient,
    standardize,
)


@pytest.fixture(scope="module")
def thumbs():
    pictures = [measure_pixels(np.asarray(picture(seed))).thumb for seed in range(150)]
    return np.stack(pictures)


def test_orientations_are_the_eight_of_a_square_and_have_inverses():
    square = np.arange(9).reshape(1, 3, 3)
    turned = [orient(square, orientation) for orientation in range(ORIENTATIONS)]
    assert len({image.tobytes() for image in map(np.ascontiguousarray, turned)}) == 8
    for orientation, image in enumerate(turned):
        assert np.array_equal(orient(image, inverse(orientation)), square)
    assert np.array_equal(orient(square, 4)[0], square[0].T)
    assert np.array_equal(orient(square, 1)[0], square[0, :, ::-1])
    assert np.array_equal(orient(square, 2)[0], square[0, ::-1])


def test_products_of_standardized_thumbnails_are_correlations(thumbs):
    rows = standardize(thumbs[:2])
    naive = np.corrcoef(thumbs[0].ravel().astype(float), thumbs[1].ravel().astype(float))[0, 1]
    assert rows[0] @ rows[1] == pytest.approx(naive, abs=1e-5)
    assert not standardize(np.full((1, 16, 16), 7, np.uint8)).any()


@pytest.mark.parametrize("all_pairs", [0, 1024])
def test_finds_the_pairs_that_comparing_all_finds(thumbs, monkeypatch, all_pairs):
    monkeypatch.setattr(search, "ALL_PAIRS", all_pairs)
    rng = np.random.default_rng(0)
    copies = [orient(thumbs[None, index], index % 8)[0] for index in range(40)]
    noisy = [(copy + rng.normal(0, 4, copy.shape)).clip(0, 255).astype(np.uint8) for copy in copies]
    everything = np.concatenate([thumbs, np.stack(noisy)])
    rows, expected = standardize(everything), set()
    for orientation in range(ORIENTATIONS):
        first, second = np.nonzero(standardize(orient(everything, orientation)) @ rows.T >= MIN_CORRELATION)
        expected |= {(min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    expected = {pair for pair in expected if pair[0] != pair[1]}
    assert {(index, 150 + index) for index in range(40)} <= expected
    found = find_candidates(everything)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    for first, second, orientation in zip(found.first, found.second, found.orientations, strict=True):
        if second == 150 + first:
            assert orientation == first % 8


def test_a_set_of_equal_or_flat_images_ends(thumbs, monkeypatch):
    monkeypatch.setattr(search, "ALL_PAIRS", 100)
    alike = np.repeat(thumbs[:1], 10 * MAX_BUCKET, axis=0)
    assert len(find_candidates(alike[:50]).first) == 50 * 49 // 2
    found = find_candidates(alike)
    assert set(found.second.tolist()) == set(range(1, len(alike)))
    assert len(found.first) < 2 * MAX_BUCKET * len(alike)
    assert len(find_candidates(np.full((5, 16, 16), 9, np.uint8)).first) == 0
    assert len(find_candidates(alike[:0]).first) == 0
