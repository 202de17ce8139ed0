"""`Classifier.explain`, its pictures, and the heat maps of several images."""

import logging

import numpy as np
import pytest
import torch
from made_classifiers import Corners, bright_left, classifier_of
from torch import nn

from cvtrain.explain.explanation import Explanation, heat_maps, overlay_heat


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_explanation_of_a_network_whose_answer_is_known(method):
    classifier = classifier_of(Corners(has_map=True), temperature=0.5)
    image = bright_left()
    found = classifier.explain(image, method=method)
    np.testing.assert_allclose(found.heat, image / 250, atol=1e-6)
    np.testing.assert_array_equal(found.pixels[:, :, 0], image)
    assert (found.label, found.method, found.layer) == ("left", method, "maps")
    # The logits are 4 * 9 / 144 * 250 / 255 and 0, over a temperature of 0.5.
    assert found.prob == pytest.approx(1 / (1 + np.exp(-0.5 * 250 / 255)), rel=1e-6)
    assert found.prob == pytest.approx(classifier.predict(image)[0].prob, rel=1e-6)
    assert found.is_meaningful
    assert found.deletion.hot_drop > 0.05 > found.deletion.random_drop
    other = classifier.explain(image, "right", method)
    assert (other.label, other.prob, other.is_meaningful) == ("right", pytest.approx(1 - found.prob), False)
    assert not other.heat.any() and other.deletion is None
    assert "no deletion score" in repr(other)
    assert "'left' 0.6" in repr(found)


def test_occlusion_takes_the_place_of_a_missing_map_and_says_so_once(caplog):
    classifier = classifier_of(Corners(has_map=False))
    with caplog.at_level(logging.WARNING):
        found = [classifier.explain(bright_left()) for _ in range(3)]
    assert caplog.text.count("occlusion takes the place of Grad-CAM") == 1
    assert (found[0].method, found[0].layer) == ("occlusion", "")
    np.testing.assert_array_equal(found[0].heat, found[2].heat)
    assert found[0].heat[3, 2] == 1.0
    # Grey over the dark right half speaks for that half, a little.
    assert found[0].heat[:, 7:].max() < 0.1 < found[0].heat[3, 3]
    asked = classifier_of(Corners(has_map=True)).explain(bright_left(), method="occlusion")
    np.testing.assert_allclose(asked.heat, found[0].heat, atol=1e-5)


def test_wrong_arguments():
    classifier = classifier_of(Corners(has_map=True))
    with pytest.raises(ValueError, match=r"target='up': no such class; there are left, right"):
        classifier.explain(bright_left(), "up")
    with pytest.raises(ValueError, match="method='lime': must be one of gradcam, hirescam, occlusion"):
        classifier.explain(bright_left(), method="lime")
    with pytest.raises(ValueError, match=r"alpha=2: must be 0\.\.1"):
        overlay_heat(np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2)), 2)


def test_overlay_leaves_cold_places_grey_and_enlarges_small_images():
    heat = np.zeros((5, 5), np.float32)
    heat[1, 3] = 1.0
    pixels = np.full((5, 5, 3), (30, 60, 90), np.uint8)
    found = Explanation(heat, pixels, "a", 0.5, "gradcam", "layer", None)
    picture = np.asarray(found.overlay())
    assert picture.shape == (195, 195, 3)  # 39 times
    assert (picture[0, 0] == 60).all()
    blocks = picture.reshape(5, 39, 5, 39, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    np.testing.assert_allclose(blocks[1, 0, 3, 0], (0.5 * 60 + 127.5, 30, 30), atol=1)  # red over grey
    assert np.asarray(found.overlay(0.0)).max() == 60
    large = Explanation(np.zeros((300, 300)), np.zeros((300, 300, 1), np.uint8), "a", 1, "", "", None)
    assert large.overlay().size == (300, 300)


def test_heat_maps_of_many_equal_those_of_each():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.train()
    images, targets = torch.randn(19, 1, 10, 10), torch.arange(19) % 4
    together = heat_maps(network, images, targets)
    assert (together.shape, together.dtype, network.training) == ((19, 10, 10), np.float32, True)
    for index in (0, 7, 18):
        alone = heat_maps(network, images[index : index + 1], targets[index : index + 1])
        np.testing.assert_allclose(together[index], alone[0], atol=1e-5)
    assert network[1].num_batches_tracked == 0
    assert heat_maps(nn.Flatten(), images, targets) is None
