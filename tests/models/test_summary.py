import pytest
import torch
from torch import nn
from torchvision import models

from cvtrain.models.mlp import MLP
from cvtrain.models.summary import count_macs, summarize_model


@pytest.mark.parametrize(
    "arch",
    ["alexnet", "vgg16", "resnet18", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "googlenet",
     "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t", "regnet_y_400mf"],
)  # fmt: skip
def test_macs_are_torchvisions_published_ones(arch, on_meta):
    entry = models.get_model_weights(arch).DEFAULT
    kwargs = {"init_weights": False} if arch == "googlenet" else {}
    with on_meta():
        net = models.get_model(arch, weights=None, **kwargs)
    size = entry.transforms().crop_size[0]
    assert count_macs(net, (1, 3, size, size)) / 1e9 == pytest.approx(entry.meta["_ops"], abs=0.0006)


def test_macs_and_parameters_of_an_mlp_are_the_closed_form():
    summary = summarize_model(MLP(64, 10, hidden=[512, 512]), (1, 8, 8))
    assert summary.macs == 64 * 512 + 512 * 512 + 512 * 10
    assert summary.params == summary.trainable == 65 * 512 + 513 * 512 + 513 * 10


def test_batch_multiplies_macs():
    assert count_macs(MLP(64, 10), (7, 1, 8, 8)) == 7 * count_macs(MLP(64, 10), (1, 1, 8, 8))


def test_rows_of_resnet18(on_meta):
    with on_meta():
        net = models.resnet18(num_classes=7)
    for parameter in net.layer1.parameters():
        parameter.requires_grad_(False)
    summary = summarize_model(net, (3, 224, 224))
    assert summary.params == 11_180_103
    assert summary.trainable == 11_180_103 - 147_968
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    assert rows["conv1"].output == (64, 112, 112)
    assert rows["layer4"].output == (512, 7, 7)
    assert (rows["layer1"].params, rows["layer1"].trainable) == (147_968, 0)
    assert (rows["fc"].type, rows["fc"].output, rows["fc"].params) == ("Linear", (7,), 512 * 7 + 7)


def test_few_parts_are_opened(on_meta):
    with on_meta():
        net = models.vit_b_16()
    names = [row.name for row in summarize_model(net, (3, 224, 224)).rows]
    assert names == ["conv_proj", "encoder", "encoder.layers", "encoder.ln", "heads", "heads.head"]
    assert [row.name for row in summarize_model(net, (3, 224, 224), depth=1).rows] == ["conv_proj", "encoder", "heads"]


def test_table():
    lines = str(summarize_model(MLP(64, 10, hidden=[512]), (1, 8, 8))).splitlines()
    assert lines[0].split() == ["layer", "type", "output", "parameters", "trainable"]
    assert lines[2].split() == ["hidden", "Sequential", "512", "33,280", "33,280"]
    assert lines[-3].split() == ["head", "Linear", "10", "5,130", "5,130"]
    assert set(lines[-2]) == {"-"}
    assert lines[-1] == "MLP: 38,410 parameters, 38,410 trainable, 37.9 k MACs per image"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_the_network_is_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 2))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    summarize_model(net, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [layer.training for layer in net] == [True, False, True, True, True]
    assert not net[0]._forward_hooks


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[1].weight
    assert summarize_model(net, (1, 2, 2)).params == 16 + 4 + 4


def test_macs_of_attention_and_transposed_convolution():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 6, kernel_size=2, stride=2, groups=2)

        def forward(self, images):
            features = self.up(images).flatten(2).transpose(1, 2)[:, None]  # (B, 1, 4 * H * W, 6)
            return nn.functional.scaled_dot_product_attention(features, features, features)

    # Each of 4 x 3 x 3 inputs meets 3 outputs of its group times a kernel of 4; then 36 x 36 pairs, twice 6 products.
    assert count_macs(Both(), (1, 4, 3, 3)) == 4 * 9 * 3 * 4 + 36 * 36 * (6 + 6)
