"""`SmallConvNet`: its first layer whitens, its filters start by handing on, and what is fixed stays."""

import pytest
import torch
from torch.nn import functional as F

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import SmallConvNetConfig
from cvtrain.models.build import build_model


def build(channels=3, image_size=32, **settings):
    torch.manual_seed(0)
    return build_model(SmallConvNetConfig(**settings), num_classes=10, channels=channels, image_size=image_size)


def made_photos(channels=3):
    """Smooth images, whose neighbouring pixels and colours go together, as in photos."""
    noise = torch.randn(200, channels, 20, 20, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(noise + noise.mean(1, keepdim=True), 5, stride=1)  # (200, C, 16, 16)


@pytest.mark.parametrize("channels", [3, 1])
def test_whitened_patches_are_uncorrelated_with_variance_one(channels):
    built, images = build(channels), made_photos(channels)
    built.calibrate(images)
    count = 4 * channels
    with torch.no_grad():
        outputs = F.conv2d(images, built.module.patches.weight)  # (200, 8 C, 15, 15)
    assert torch.equal(outputs[:, :count], -outputs[:, count:])
    values = outputs[:, :count].transpose(0, 1).flatten(1).double()
    covariance = values @ values.T / values.shape[1]
    assert torch.allclose(covariance - torch.diag(covariance.diag()), torch.zeros(count, count).double(), atol=1e-3)
    patches = F.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
    eigenvalues = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    assert torch.allclose(covariance.diag(), eigenvalues / (eigenvalues + 5e-4), atol=1e-3)


def test_filters_start_by_handing_their_input_on():
    block = build().module.blocks[0]
    images = torch.rand(2, 24, 8, 8)
    with torch.no_grad():
        assert torch.equal(block.conv1(images)[:, :24], images)
        assert not torch.equal(block.conv1(images)[:, 24:48], images)


def test_what_is_fixed_and_what_trains():
    built = build()
    scales = {name for name, _ in built.module.named_parameters() if ".norm" in name and name.endswith("weight")}
    assert built.fixed == scales | {"patches.weight"} and len(scales) == 6
    assert built.convolutional and built.head == ("head",)
    trained = build(whiten=False)
    assert trained.fixed == scales and trained.calibrate is None


def test_logits_have_their_scale():
    module, images = build(logit_scale=0.5).module.eval(), torch.rand(2, 3, 32, 32)
    other = build(logit_scale=2.0).module.eval()
    with torch.no_grad():
        assert module(images).shape == (2, 10)
        assert torch.allclose(4 * module(images), other(images), rtol=1e-5)


def test_images_need_a_pixel_for_each_halving():
    build(image_size=9)
    with pytest.raises(ConfigError, match=r"model\.widths=\[64,256,256\]: each width halves the image"):
        build(image_size=8)
