import math

import pytest
import torch
from torch.nn import functional as F

from cvtrain.config.schema.model import Activation, MLPConfig, Norm
from cvtrain.models import build_model
from cvtrain.models.mlp import MLP


def test_is_the_plain_formula():
    torch.manual_seed(0)
    net = MLP(12, 5, hidden=[7, 6])
    images = torch.randn(4, 3, 2, 2)
    x = images.reshape(4, 12)
    for layer in net.hidden:
        x = torch.relu(x @ layer.linear.weight.T + layer.linear.bias)
    expected = x @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-6)


def test_no_hidden_layers_is_a_linear_classifier():
    net = MLP(64, 10, hidden=[])
    assert [tuple(p.shape) for p in net.parameters()] == [(10, 64), (10,)]


def test_initial_loss_is_that_of_a_uniform_guess():
    torch.manual_seed(0)
    net = MLP(64, 10)
    loss = F.cross_entropy(net(torch.randn(512, 1, 8, 8)), torch.randint(10, (512,)))
    assert loss.item() == pytest.approx(math.log(10), abs=0.05)


def test_he_initialisation_keeps_the_second_moment():
    # For inputs of variance 1, E[a^2] after relu stays 1/2 * 2 = 1 at any depth.
    torch.manual_seed(0)
    net = MLP(1000, 2, hidden=[2000] * 4)
    for layer in net.hidden:
        assert layer.linear.weight.std().item() == pytest.approx(math.sqrt(2 / layer.linear.in_features), rel=0.01)
        assert layer.linear.bias.abs().max().item() == 0
    activations = net.hidden(torch.randn(200, 1000))
    assert activations.square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_norm_activation_and_dropout_stand_in_order():
    net = MLP(4, 2, hidden=[3], activation="gelu", norm="batch", dropout=0.25)
    assert [type(part).__name__ for part in net.hidden[0]] == ["Linear", "BatchNorm1d", "GELU", "Dropout"]
    assert net.hidden[0].dropout.p == 0.25
    assert net.hidden[0].linear.bias is None
    assert [type(part).__name__ for part in MLP(4, 2, hidden=[3], norm="layer", activation="tanh").hidden[0]] == [
        "Linear",
        "LayerNorm",
        "Tanh",
    ]


def test_wrong_image_size_is_told():
    with pytest.raises(ValueError, match=r"\(1, 9, 9\) have 81 values; this MLP was built for 64"):
        MLP(64, 10)(torch.zeros(2, 1, 9, 9))


def test_build_from_config():
    config = MLPConfig(hidden=[32, 16], activation=Activation.silu, norm=Norm.layer)
    built = build_model(config, num_classes=10, channels=3, image_size=8)
    assert built.module.in_features == 3 * 8 * 8
    assert built.head == ("head",)
    assert not built.convolutional
    assert built.mean is None
    assert built.layers == (
        ("hidden.0.linear.weight", "hidden.0.linear.bias", "hidden.0.norm.weight", "hidden.0.norm.bias"),
        ("hidden.1.linear.weight", "hidden.1.linear.bias", "hidden.1.norm.weight", "hidden.1.norm.bias"),
        ("head.weight", "head.bias"),
    )
