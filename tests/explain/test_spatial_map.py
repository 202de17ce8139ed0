"""The last map with places, in networks of every kind. `-m slow` has all of torchvision and 20 families of timm."""

import pytest
import torch
from random_networks import random_network
from torch import nn
from torchvision import models

from cvtrain.explain.methods import class_activation_maps
from cvtrain.explain.spatial_map import Layout, SpatialMap, find_spatial_map, read_map

# Of each network: where its map is, and how it lies there.
KNOWN = {
    "torchvision/resnet18": ("layer4", Layout.channels_first, 0),
    "torchvision/squeezenet1_1": ("classifier.2", Layout.channels_first, 0),
    "timm/test_vit": ("blocks.5.norm1", Layout.tokens, 1),
    "timm/test_efficientnet": ("bn2", Layout.channels_first, 0),
    "torchvision/swin_t": ("permute", Layout.channels_first, 0),
    "torchvision/convnext_tiny": ("features", Layout.channels_first, 0),
    "torchvision/vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", Layout.tokens, 1),
    "timm/vit_tiny_patch16_224": ("blocks.11.norm1", Layout.tokens, 1),
    "timm/deit_tiny_distilled_patch16_224": ("blocks.11.norm1", Layout.tokens, 2),
    "timm/vit_small_patch16_dinov3": ("norm", Layout.tokens, 5),
    "timm/eva02_tiny_patch14_224": ("norm", Layout.tokens, 1),
    "timm/swin_tiny_patch4_window7_224": ("norm", Layout.channels_last, 0),
    "timm/cait_xxs24_224": ("blocks_token_only.1.norm1", Layout.tokens, 1),
    "timm/mixer_s16_224": ("norm", Layout.tokens, 0),
    "timm/xcit_nano_12_p16_224": ("cls_attn_blocks.1.norm1", Layout.tokens, 1),
    "timm/vit_base_patch16_siglip_224": ("norm", Layout.tokens, 0),
    "timm/levit_128s": ("stages", Layout.tokens, 0),
    "timm/pvt_v2_b0": ("stages", Layout.channels_first, 0),
    "timm/volo_d1_224": ("norm", Layout.tokens, 1),
    "timm/crossvit_tiny_240": ("blocks.2.fusion.0.norm1", Layout.tokens, 1),
    "timm/hiera_tiny_224": ("blocks.11", Layout.tokens, 0),
}
OTHERS = (
    "timm/convnextv2_atto",
    "timm/efficientformer_l1",
    "timm/mobilevit_xxs",
    "timm/nfnet_f0",
    "timm/twins_svt_small",
)
SAMPLE = ("torchvision/resnet18", "torchvision/squeezenet1_1", "timm/test_vit", "timm/test_efficientnet")
NAMES = dict.fromkeys((*KNOWN, *OTHERS, *(f"torchvision/{name}" for name in models.list_models(module=models))))
MATRIX = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in SAMPLE)]
# Sizes of images for networks that do not take 96 pixels.
SIZES = {
    "torchvision/inception_v3": 299,
    "torchvision/maxvit_t": 224,
    "torchvision/vit_h_14": 98,
    "timm/test_vit": 160,
    "timm/eva02_tiny_patch14_224": 224,
    "timm/levit_128s": 224,
    "timm/crossvit_tiny_240": 240,
    "timm/hiera_tiny_224": 224,
    "timm/volo_d1_224": 224,
    "timm/efficientformer_l1": 224,
    "timm/swin_tiny_patch4_window7_224": 224,
}


@pytest.mark.parametrize("name", MATRIX)
def test_every_network_has_a_map(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    size = SIZES.get(name, 96)
    network = random_network(name, size=size).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # what a network keeps of a prediction must not be in the way
        expected = network(images)
    place = find_spatial_map(network, images[:1])
    if name in KNOWN:
        assert (place.name, place.layout, place.prefix) == KNOWN[name]
    targets = torch.tensor([1, 4])
    for high_resolution in (False, True):
        heat = class_activation_maps(network, images, targets, place, high_resolution=high_resolution)
        assert heat.shape == (2, size, size)
        assert heat.isfinite().all()
        assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
        assert torch.equal(
            heat, class_activation_maps(network, images, targets, place, high_resolution=high_resolution)
        )
    features, gradient = read_map(network, images, targets, place)
    assert features.shape == gradient.shape == (2, features.shape[1], place.grid, place.grid)
    assert gradient.abs().amax() > 0
    with torch.inference_mode():
        assert torch.equal(network(images), expected)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


class Tokens(nn.Module):
    """Registers and a class token, then 3 x 3 patches; a layer that mixes tokens and one that does not."""

    def __init__(self, prefix, pool):
        super().__init__()
        self.prefix, self.pool = prefix, pool
        self.embed = nn.Conv2d(1, 4, 4, 4)
        self.norm1 = nn.LayerNorm(4)
        self.norm2 = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens[:, :1].expand(-1, self.prefix, -1), tokens], 1)
        tokens = self.norm1(tokens)
        tokens = tokens + torch.softmax(tokens @ tokens.transpose(1, 2), 2) @ tokens
        tokens = self.norm2(tokens)
        return self.head(tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix :].mean(1))


@pytest.mark.parametrize(
    ("prefix", "pool", "name"), [(5, "token", "norm1"), (1, "token", "norm1"), (0, "mean", "norm2")]
)
def test_class_token_sees_patches_only_before_the_last_attention(prefix, pool, name):
    torch.manual_seed(0)
    network = Tokens(prefix, pool).eval()
    images = torch.randn(1, 1, 12, 12)
    assert find_spatial_map(network, images) == SpatialMap(name, 0, Layout.tokens, 3, prefix)


class ReusedInPlace(nn.Module):
    """One ReLU, called twice, that writes over its input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        return self.head(self.relu(self.second(self.relu(self.first(images)))).mul(2).mean((2, 3)))


def test_calls_of_one_layer_are_told_apart():
    torch.manual_seed(0)
    network = ReusedInPlace().eval()
    images = torch.randn(3, 1, 9, 9)
    place = find_spatial_map(network, images[:1])
    assert place == SpatialMap("relu", 1, Layout.channels_first, 5)
    features, gradient = read_map(network, images, torch.tensor([0, 1, 0]), place)
    with torch.no_grad():
        expected = network.second(network.first(images).relu()).relu()
    torch.testing.assert_close(features, expected)
    # The logit is the mean over 25 places of twice the features, weighted.
    weights = network.head.weight[[0, 1, 0]].detach()
    torch.testing.assert_close(gradient, (weights * 2 / 25)[:, :, None, None].expand_as(features))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()),
    ],
)
def test_networks_without_a_map(network):
    assert find_spatial_map(network.eval(), torch.randn(1, 1, 8, 8)) is None


def test_frozen_parameters_stay_frozen():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    ).eval()
    network[0].weight.requires_grad_(False)
    assert find_spatial_map(network, torch.randn(1, 1, 8, 8)).name == "1"
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, True, True, True]
