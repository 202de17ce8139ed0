import copy
from dataclasses import fields

import pytest
import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.optim import (
    OPTIMIZER_CONFIGS,
    AdagradConfig,
    AdamWConfig,
    Kernel,
    MuonConfig,
    NAdamConfig,
    OptimizerConfig,
    SGDConfig,
)
from cvtrain.optim.build import OPTIMIZERS, build_optimizer, kernel_arguments

CPU = torch.device("cpu")
# torch's own spelling of the arguments, written out once more so that a wrong name in the table shows.
BY_HAND = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": True}),
    "nadam": (
        torch.optim.NAdam,
        {"betas": (0.8, 0.99), "eps": 1e-6, "momentum_decay": 0.01, "decoupled_weight_decay": True},
    ),
    "radam": (torch.optim.RAdam, {"betas": (0.8, 0.99), "eps": 1e-6, "decoupled_weight_decay": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-6, "initial_accumulator_value": 0.1}),
    "adadelta": (torch.optim.Adadelta, {"rho": 0.8, "eps": 1e-5}),
    "adamax": (torch.optim.Adamax, {"betas": (0.8, 0.99), "eps": 1e-6}),
}
CHANGES = {
    "sgd": {"nesterov": True},
    "adam": {"betas": [0.8, 0.99], "eps": 1e-6, "amsgrad": True},
    "adamw": {"betas": [0.8, 0.99], "eps": 1e-6, "amsgrad": True},
    "nadam": {"betas": [0.8, 0.99], "eps": 1e-6, "momentum_decay": 0.01},
    "radam": {"betas": [0.8, 0.99], "eps": 1e-6},
    "rmsprop": {"alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True},
    "adagrad": {"eps": 1e-6, "initial_accumulator": 0.1},
    "adadelta": {"rho": 0.8, "eps": 1e-5},
    "adamax": {"betas": [0.8, 0.99], "eps": 1e-6},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, inputs):
        return self.fc(self.norm(self.body(inputs)).relu())


def make_net() -> Net:
    torch.manual_seed(0)
    return Net()


def build(config: OptimizerConfig, net: nn.Module):
    return build_optimizer(config, net, head=("fc",), layers=(), device=CPU)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 6, generator=generator)
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()


def assert_equal_nets(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_tables_cover_every_config():
    assert {*OPTIMIZERS, MuonConfig} == set(OPTIMIZER_CONFIGS.values())
    assert {*BY_HAND, "muon"} == set(OPTIMIZER_CONFIGS)


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_torchs_own_with_decay_on_matrices_only(name):
    config = OPTIMIZER_CONFIGS[name](lr=0.05, weight_decay=0.1, kernel=Kernel.single, **CHANGES[name])
    ours, theirs = make_net(), make_net()
    train(ours, build(config, ours), 4)
    optimizer_class, arguments = BY_HAND[name]
    groups = [
        {"params": [theirs.body.weight, theirs.fc.weight], "weight_decay": 0.1},
        {"params": [theirs.body.bias, *theirs.norm.parameters(), theirs.fc.bias], "weight_decay": 0.0},
    ]
    train(theirs, optimizer_class(groups, lr=0.05, foreach=False, **arguments), 4)
    assert_equal_nets(ours, theirs)
    assert not torch.equal(ours.fc.weight, make_net().fc.weight)


@pytest.mark.parametrize("name", BY_HAND)
def test_every_argument_of_the_config_reaches_the_optimizer(name):
    config = OPTIMIZER_CONFIGS[name](**CHANGES[name])
    own = {field.name for field in fields(config)} - {field.name for field in fields(OptimizerConfig)}
    _, arguments = OPTIMIZERS[type(config)]
    renamed = {"initial_accumulator_value": "initial_accumulator"}
    assert {renamed.get(key, key) for key in arguments(config)} == own


@pytest.mark.parametrize("name", OPTIMIZER_CONFIGS)
def test_kernels_agree(name):
    nets = {}
    for kernel in (Kernel.auto, Kernel.foreach, Kernel.single):
        nets[kernel] = make_net()
        train(nets[kernel], build(OPTIMIZER_CONFIGS[name](lr=0.01, weight_decay=0.1, kernel=kernel), nets[kernel]), 4)
    for kernel in (Kernel.auto, Kernel.foreach):
        for a, b in zip(nets[kernel].parameters(), nets[Kernel.single].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZER_CONFIGS)
def test_state_goes_on_to_the_bit(name):
    config = OPTIMIZER_CONFIGS[name](lr=0.01, weight_decay=0.1)
    straight = make_net()
    train(straight, build(config, straight), 6)
    cut = make_net()
    optimizer = build(config, cut)
    train(cut, optimizer, 3)
    saved = copy.deepcopy((cut.state_dict(), optimizer.state_dict()))
    resumed = make_net()
    resumed.load_state_dict(saved[0])
    optimizer = build(config, resumed)
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, 3, first=3)
    assert_equal_nets(straight, resumed)


@pytest.mark.parametrize("name", OPTIMIZER_CONFIGS)
def test_frozen_parameters_stand_still_and_train_once_unfrozen(name):
    net, before = make_net(), make_net()
    optimizer = build(OPTIMIZER_CONFIGS[name](lr=0.01, weight_decay=0.1), net)
    net.body.requires_grad_(False)
    train(net, optimizer, 2)
    assert torch.equal(net.body.weight, before.body.weight)
    net.body.requires_grad_(True)
    train(net, optimizer, 1, first=2)
    assert not torch.equal(net.body.weight, before.body.weight)


def test_fused_sgd_starts_late_parameters_as_the_others_do():
    nets = [make_net(), make_net()]
    for net, kernel in zip(nets, (Kernel.fused, Kernel.single), strict=True):
        optimizer = build(SGDConfig(lr=0.05, weight_decay=0.1, kernel=kernel), net)
        net.body.requires_grad_(False)
        train(net, optimizer, 2)
        net.body.requires_grad_(True)
        train(net, optimizer, 2, first=2)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("config_class", [SGDConfig, AdamWConfig, AdagradConfig])
def test_auto_is_fused_where_the_cpu_has_it(config_class):
    optimizer = build(config_class(weight_decay=0.1), make_net())
    assert [group["fused"] for group in optimizer.param_groups] == [True] * 4


def test_auto_is_single_on_the_cpu_where_nothing_is_fused():
    assert kernel_arguments(torch.optim.NAdam, Kernel.auto, CPU) == {"foreach": False}
    assert kernel_arguments(torch.optim.NAdam, Kernel.foreach, CPU) == {"foreach": True}
    assert kernel_arguments(torch.optim.AdamW, Kernel.single, CPU) == {"foreach": False}


def test_a_fused_kernel_that_is_not_there_names_the_key():
    with pytest.raises(ConfigError, match=r"optimizer\.kernel=fused: torch .* has no fused NAdam for cpu"):
        build(NAdamConfig(kernel=Kernel.fused), make_net())


def test_state_of_another_network_is_refused():
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = self.body
            del self.body

    config = SGDConfig(weight_decay=0.1)
    saved = build(config, make_net()).state_dict()
    other = Other()
    optimizer = build_optimizer(config, other, head=("fc",), layers=(), device=CPU)
    with pytest.raises(ValueError, match=r"backbone decay has trunk\.weight, the state body\.weight"):
        optimizer.load_state_dict(saved)
