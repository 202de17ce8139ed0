"""Where a network is cut when its weights are spread over processes."""

import torch
from torch import nn

from cvtrain.models.fsdp_units import choose_units


class Block(nn.Module):
    """8 x 8 weights twice: 512 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.second(self.first(features))


class Net(nn.Module):
    """Features, blocks and a head as a residual network has them; `spare` is called by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 8, bias=False)  # 384 bytes
        self.norm = nn.LayerNorm(8)  # 64 bytes
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 100, bias=False)  # 3,200 bytes
        self.spare = nn.Linear(20, 20, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.stem(images.flatten(1)))
        for block in self.blocks:
            features = block(features)
        return self.head(features)


def units(module: nn.Module, **limits: int) -> tuple[str, ...]:
    return choose_units(module, (3, 2, 2), **limits)


def test_parts_up_to_the_limit_are_units_and_smaller_ones_stay_with_what_is_around():
    assert units(Net(), largest=512, smallest=128) == ("stem", "blocks.0", "blocks.1", "head")
    assert units(Net(), largest=511, smallest=128) == (
        "stem",
        *("blocks.0.first", "blocks.0.second", "blocks.1.first", "blocks.1.second"),
        "head",
    )
    assert units(Net(), largest=512, smallest=400) == ("blocks.0", "blocks.1", "head")


def test_a_network_below_the_smallest_size_has_no_units():
    assert units(Net()) == ()


def test_what_units_leave_over_in_a_large_part_is_a_unit_around_them():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8, bias=False)
            self.scale = nn.Parameter(torch.ones(64))  # 256 bytes of its own

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.inner(features) * self.scale[:8]

    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), Around())
    assert units(net, largest=511, smallest=200) == ("1", "2.inner", "2")
    assert units(net, largest=512, smallest=200) == ("1", "2")


def test_parameters_with_two_owners_and_modules_that_are_not_called_are_no_units():
    net = Net()
    net.blocks[1].first.weight = net.blocks[0].second.weight
    assert units(net, largest=512, smallest=128) == ("stem", "blocks.0.first", "blocks.1.second", "head")

    class Functional(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = torch.nn.functional.linear(images.flatten(1), self.stem.weight)
            return self.head(self.blocks[0](features))

    assert units(Functional(), largest=512, smallest=128) == ("blocks.0", "head")


def test_choosing_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 8)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    assert units(net, largest=512, smallest=128) == ("3",)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert net.training and net[1].training and not net[3]._forward_pre_hooks
