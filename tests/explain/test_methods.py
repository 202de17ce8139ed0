"""Heat maps: closed forms, a naive loop, and the grad-cam package."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvtrain.explain.methods import class_activation_maps, occlusion_map, occlusion_squares, scaled
from cvtrain.explain.spatial_map import find_spatial_map


class Pooled(nn.Module):
    """Channels that are the image, its negative and its square; their means, weighted, are the logits."""

    def __init__(self, weights):
        super().__init__()
        self.maps = nn.Identity()
        self.weights = torch.tensor(weights)

    def forward(self, images):
        maps = self.maps(torch.cat([images, -images, images**2], 1))
        return maps.mean((2, 3)) @ self.weights.T


def test_grad_cam_of_pooled_channels_has_a_closed_form():
    network = Pooled([[2.0, 0.5, 1.0], [0.0, 1.0, 0.0]])
    images = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])[None, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    place = find_spatial_map(network, images)
    # The gradient of class 0 is (2, 0.5, 1) / 64 everywhere: the map is 1.5 x + x^2, at most 13.5, and its negative
    # values are 0. In class 1 it is -x, at most 1.
    expected = torch.stack([(1.5 * images + images**2).relu()[0, 0] / 13.5, (-images).relu()[0, 0]])
    for high_resolution in (False, True):  # the gradient is the same at all places, so both agree
        heat = class_activation_maps(
            network, images.repeat(2, 1, 1, 1), torch.tensor([0, 1]), place, high_resolution=high_resolution
        )
        torch.testing.assert_close(heat, expected)


def test_methods_differ_where_gradients_do():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).eval()
    images = torch.randn(1, 1, 4, 4)
    place = find_spatial_map(network, images)
    features = network[:2](images)[0]
    weights = network[3].weight[1].view(3, 4, 4)
    for high_resolution, factor in ((True, weights), (False, weights.mean((1, 2), keepdim=True))):
        heat = (factor * features).sum(0).relu()
        found = class_activation_maps(network, images, torch.tensor([1]), place, high_resolution=high_resolution)
        torch.testing.assert_close(found[0], heat / heat.max())


def test_no_place_speaks_for_the_class():
    network = Pooled([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    images = torch.rand(1, 1, 8, 8) + 0.1
    heat = class_activation_maps(network, images, torch.tensor([1]), find_spatial_map(network, images))
    assert not heat.any()


def reference_of(method, network, images, target, place):
    """The map of the grad-cam package, min-max scaled."""
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kind = {"gradcam": package.GradCAM, "hirescam": package.HiResCAM}[method]
    layer = network.get_submodule(place.name)
    with kind(model=network, target_layers=[layer], reshape_transform=place.to_channels_first) as cam:
        return cam(images, [ClassifierOutputTarget(target)])[0]


@pytest.mark.slow  # importing the package takes most of the time
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_vit", "timm/test_efficientnet"])
def test_maps_equal_those_of_the_grad_cam_package(name, method):
    timm = pytest.importorskip("timm")
    from torchvision import models

    library, _, arch = name.partition("/")
    torch.manual_seed(0)
    network = (
        models.get_model(arch, num_classes=5) if library == "torchvision" else timm.create_model(arch, num_classes=5)
    )
    network.eval()
    images = torch.randn(1, 3, 160, 160)
    place = find_spatial_map(network, images)
    num_compared = 0
    for target in range(5):
        found = class_activation_maps(
            network, images, torch.tensor([target]), place, high_resolution=method == "hirescam"
        )[0].numpy()
        if not found.any():
            continue
        num_compared += 1
        expected = reference_of(method, network, images, target, place)
        # The package takes the smallest value away as well.
        np.testing.assert_allclose((found - found.min()) / (found.max() - found.min()), expected, atol=2e-3)
    assert num_compared >= 2


@pytest.mark.parametrize("size", [1, 3, 8, 13, 32])
def test_occlusion_squares_cover_the_image(size):
    covered = torch.zeros(size, size)
    for rows, columns in occlusion_squares(size):
        covered[rows, columns] += 1
    assert covered.min() >= 1


def test_occlusion_equals_a_naive_loop():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 13, 13), dtype=torch.uint8)
    weights = torch.randn(3, 13, 13, dtype=torch.float64)

    def score(images):
        return (images.double() / 255 * weights).mean((1, 2, 3))

    falls, counts = np.zeros((13, 13)), np.zeros((13, 13))
    mean = [round(float(channel.double().mean())) for channel in pixels]
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]  # a square of 3 pixels, that moves by 1
    for top in starts:
        for left in starts:
            hidden = pixels.clone()
            for row in range(top, top + 3):
                for column in range(left, left + 3):
                    for channel in range(3):
                        hidden[channel, row, column] = mean[channel]
            fall = float(score(pixels[None]) - score(hidden[None]))
            falls[top : top + 3, left : left + 3] += fall
            counts[top : top + 3, left : left + 3] += 1
    expected = np.maximum(falls / counts, 0)
    for batch_size in (1, 7, 500):
        np.testing.assert_allclose(occlusion_map(score, pixels, batch_size), expected / expected.max(), rtol=1e-5)


def test_occlusion_finds_the_one_spot_that_counts():
    pixels = torch.zeros(1, 24, 24, dtype=torch.uint8)
    pixels[:, 8:12, 16:20] = 255

    def score(images):
        return images[:, 0, 8:12, 16:20].double().mean((1, 2)) / 255

    heat = occlusion_map(score, pixels, 16)
    assert heat.argmax() in [row * 24 + column for row in range(8, 12) for column in range(16, 20)]
    assert heat[8:12, 16:20].min() > 0.3
    assert not heat[:6].any() and not heat[14:].any() and not heat[:, :13].any()


def test_scaled_maps_have_1_as_their_largest_value():
    maps = torch.stack([torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [4.0, 2.0]])])
    assert torch.equal(scaled(maps), torch.stack([torch.zeros(2, 2), torch.tensor([[0.25, 0.0], [1.0, 0.5]])]))
    assert F.interpolate(scaled(maps)[:, None], (4, 4), mode="bilinear").max() == 1
