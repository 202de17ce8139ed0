import copy
import math

import pytest
import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.optim import Kernel, MuonConfig
from cvtrain.optim.build import build_optimizer
from cvtrain.optim.muon import MuonWithAdamW, muon_parameters, orthogonalize

CPU = torch.device("cpu")


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.up = nn.ConvTranspose2d(6, 6, 2)
        self.linear = nn.Linear(6, 12)
        self.fc = nn.Linear(12, 4)

    def forward(self, images):
        features = self.up(self.depthwise(self.norm(self.conv(self.stem(images).relu())).relu()))
        return self.fc(self.linear(features.mean(dim=(2, 3))).relu())


LAYERS = (
    ("stem.weight", "stem.bias"),
    (
        "conv.weight",
        "norm.weight",
        "norm.bias",
        "depthwise.weight",
        "depthwise.bias",
        "up.weight",
        "up.bias",
        "linear.weight",
        "linear.bias",
    ),
    ("fc.weight", "fc.bias"),
)


def make_net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet()


def build(net: nn.Module, **changes):
    return build_optimizer(MuonConfig(**changes), net, head=("fc",), layers=LAYERS, device=CPU)


def backward(net: nn.Module, step: int, scale: float = 1.0) -> None:
    images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))
    (net(images).square().mean() * scale).backward()


def train(net: nn.Module, optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()


def test_muon_takes_dense_hidden_weights():
    net = ConvNet()
    assert muon_parameters(net, head=("fc",), layers=LAYERS) == {"conv.weight", "linear.weight"}
    # With two layers there is no input layer to leave out.
    assert muon_parameters(net, head=("fc",), layers=()) == {"stem.weight", "conv.weight", "linear.weight"}


def test_groups_have_both_rates_and_the_usual_decay():
    optimizer = build(make_net(), lr=0.02, adamw_lr=1e-3, weight_decay=0.1, backbone_lr_scale=0.5)
    assert [
        (group["name"], group["initial_lr"], group["weight_decay"], group["param_names"])
        for group in optimizer.param_groups
    ] == [
        ("backbone decay (muon)", 0.01, 0.1, ["conv.weight", "linear.weight"]),
        ("backbone decay (adamw)", 5e-4, 0.1, ["stem.weight", "depthwise.weight", "up.weight"]),
        (
            "backbone no_decay (adamw)",
            5e-4,
            0.0,
            ["stem.bias", "norm.weight", "norm.bias", "depthwise.bias", "up.bias", "linear.bias"],
        ),
        ("head decay (adamw)", 1e-3, 0.1, ["fc.weight"]),
        ("head no_decay (adamw)", 1e-3, 0.0, ["fc.bias"]),
    ]


def test_orthogonalize_brings_singular_values_near_one_and_keeps_singular_vectors():
    torch.manual_seed(0)
    for shape in ((20, 8), (8, 20), (16, 16)):
        matrix = torch.randn(shape)
        result = orthogonalize(matrix, steps=5).float()
        values = torch.linalg.svdvals(result)
        # The quintic's fixed band, with bfloat16's rounding; a square Gaussian has singular values near 0.
        low = 0.6 if shape != (16, 16) else 0.3
        assert values.min() > low and values.max() < 1.3
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        core = left.T @ result @ right.T
        off_diagonal = core - torch.diag(core.diag())
        assert off_diagonal.abs().max() < 0.05


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_torchs_muon_and_adamw_to_the_bit(nesterov):
    class MLP(nn.Sequential):
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__(
                nn.Flatten(), nn.Linear(243, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3)
            )

    ours, theirs = MLP(), MLP()
    layers = (("1.weight", "1.bias"), ("3.weight", "3.bias"), ("5.weight", "5.bias"))
    config = MuonConfig(weight_decay=0.1, nesterov=nesterov, kernel=Kernel.single)
    optimizer = build_optimizer(config, ours, head=("5",), layers=layers, device=CPU)
    assert isinstance(optimizer, MuonWithAdamW)
    train(ours, optimizer, 4)
    muon = torch.optim.Muon([theirs[3].weight], lr=0.02, weight_decay=0.1, nesterov=nesterov)
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs[1].weight, theirs[5].weight], "weight_decay": 0.1},
            {"params": [theirs[1].bias, theirs[3].bias, theirs[5].bias], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step in range(4):
        muon.zero_grad()
        adamw.zero_grad()
        backward(theirs, step)
        muon.step()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_filters_train_as_matrices_whatever_the_memory_format(memory_format):
    filters = nn.Parameter(torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    filters.data = filters.data.to(memory_format=memory_format)
    group = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [MuonWithAdamW([{"params": [parameter], **group}], []) for parameter in (filters, matrix)]
    for step in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(10 + step))
        filters.grad, matrix.grad = gradient.to(memory_format=memory_format), gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(filters.flatten(1), matrix)


def test_wide_and_tall_matrices_scale_by_their_shape():
    for rows, columns in ((8, 2), (2, 8)):
        weight = nn.Parameter(torch.zeros(rows, columns))
        weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        MuonWithAdamW([{"params": [weight], "lr": 0.5, "weight_decay": 0.0}], [], nesterov=False).step()
        direction = orthogonalize(weight.grad * (1 - 0.95), steps=5).float()
        torch.testing.assert_close(
            weight.detach(), -0.5 * math.sqrt(max(1, rows / columns)) * direction, rtol=1e-2, atol=1e-2
        )


def test_state_round_trip_is_exact_and_shared():
    straight = make_net()
    train(straight, build(straight), 6)
    cut = make_net()
    optimizer = build(cut)
    train(cut, optimizer, 3)
    saved = copy.deepcopy((cut.state_dict(), optimizer.state_dict()))
    resumed = make_net()
    resumed.load_state_dict(saved[0])
    optimizer = build(resumed)
    optimizer.load_state_dict(saved[1])
    again = optimizer.state_dict()
    assert again["param_groups"] == saved[1]["param_groups"]
    assert again["state"].keys() == saved[1]["state"].keys() == set(range(13))
    for key, state in saved[1]["state"].items():
        assert state.keys() == again["state"][key].keys()
        assert all(torch.equal(state[name], again["state"][key][name]) for name in state)
    train(resumed, optimizer, 3, first=3)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rate_zero_in_the_live_groups_stops_both():
    net, before = make_net(), make_net()
    optimizer = build(net)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(net, optimizer, 1)
    for a, b in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("kernel", [Kernel.auto, Kernel.single])
def test_grad_scaler_unscales_and_skips(kernel):
    plain, scaled = make_net(), make_net()
    train(plain, build(plain, kernel=kernel), 2)
    optimizer = build(scaled, kernel=kernel)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(2):
        optimizer.zero_grad()
        backward(scaled, step, scale=float(scaler.get_scale()))
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)  # a power of two scales without rounding
    optimizer.zero_grad()
    backward(scaled, 2, scale=math.inf)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)


def test_disabled_grad_scaler_steps():
    plain, scaled = make_net(), make_net()
    train(plain, build(plain), 1)
    optimizer = build(scaled)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward(scaled, 0)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closure_is_called_with_gradients_on():
    net = make_net()
    optimizer = build(net)

    def closure() -> float:
        optimizer.zero_grad()
        loss = net(torch.ones(4, 3, 9, 9)).square().mean()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) > 0


def test_a_network_without_hidden_matrices_is_refused():
    net = nn.Module()
    net.fc = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match="optimizer=muon: this network has no hidden layer"):
        build_optimizer(MuonConfig(), net, head=("fc",), layers=(), device=CPU)
