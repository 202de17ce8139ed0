import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from cvtrain.config.errors import ConfigError
from cvtrain.optim.param_groups import format_groups, parameter_groups, weight_names


class Net(nn.Module):
    """Two blocks and a head, with one of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)  # 216 + 8
        self.norm = nn.GroupNorm(2, 8)  # 8 + 8
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))  # 8
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 8))  # 40
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))  # 8
        self.mix = nn.Parameter(torch.ones(8, 8))  # 64
        self.fc = nn.Linear(8, 4)  # 32 + 4


LAYERS = (
    ("stem.weight", "stem.bias", "class_token", "pos_embedding"),
    ("norm.weight", "norm.bias", "layer_scale", "mix"),
    ("fc.weight", "fc.bias"),
)


def groups_of(module: nn.Module, **changes):
    arguments = {"head": ("fc",), "layers": LAYERS, "lr": 0.4, "weight_decay": 0.1} | changes
    return parameter_groups(module, **arguments)


def by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}


def test_only_matrices_and_filters_decay():
    groups = groups_of(Net())
    assert [(group["name"], group["param_names"]) for group in groups] == [
        ("backbone decay", ["mix", "stem.weight"]),
        (
            "backbone no_decay",
            ["class_token", "pos_embedding", "layer_scale", "stem.bias", "norm.weight", "norm.bias"],
        ),
        ("head decay", ["fc.weight"]),
        ("head no_decay", ["fc.bias"]),
    ]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0]
    assert all(group["lr"] == group["initial_lr"] == 0.4 for group in groups)


def test_decay_norm_and_bias_decays_all():
    groups = groups_of(Net(), decay_norm_and_bias=True)
    assert [group["name"] for group in groups] == ["backbone decay", "head decay"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]


def test_norms_and_biases_may_learn_faster():
    groups = groups_of(Net(), norm_and_bias_lr_scale=8.0, backbone_lr_scale=0.5)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("backbone decay", 0.2),
        ("backbone no_decay scaled", 1.6),
        ("head decay", 0.4),
        ("head no_decay scaled", 3.2),
    ]
    together = groups_of(Net(), norm_and_bias_lr_scale=8.0, decay_norm_and_bias=True)
    assert [(group["name"], group["lr"]) for group in together][:2] == [
        ("backbone decay", 0.4),
        ("backbone decay scaled", 3.2),
    ]


def test_no_decay_makes_one_group_per_part():
    assert [group["name"] for group in groups_of(Net(), weight_decay=0.0)] == ["backbone no_decay", "head no_decay"]


@pytest.mark.parametrize("freeze", [False, True])
def test_every_parameter_is_in_exactly_one_group(freeze):
    net = Net()
    if freeze:
        for parameter in net.stem.parameters():
            parameter.requires_grad_(False)
    groups = groups_of(net, layer_decay=0.5, backbone_lr_scale=0.3)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in net.parameters()}
    named = dict(net.named_parameters())
    for group in groups:
        assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))


def test_layer_decay_falls_with_the_distance_to_the_head():
    rates = by_name(groups_of(Net(), layer_decay=0.5, backbone_lr_scale=0.1))
    for depth, scale in ((0, 0.1 * 0.25), (1, 0.1 * 0.5), (2, 1.0)):
        for name in LAYERS[depth]:
            assert rates[name][0] == pytest.approx(0.4 * scale, rel=1e-15)


def test_auxiliary_head_at_another_depth_has_the_heads_rate():
    net = Net()
    rates = by_name(groups_of(net, head=("fc", "norm"), layer_decay=0.5))
    assert rates["norm.weight"][0] == rates["fc.weight"][0] == 0.4
    assert rates["mix"][0] == 0.2


def test_network_without_a_head_is_one_part():
    net = Net()
    assert [group["name"] for group in groups_of(net, head=())] == ["model decay", "model no_decay"]


def test_norms_embeddings_and_declared_names_do_not_decay():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm((4, 5))
            self.embed = nn.Embedding(3, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.pointwise = nn.Conv2d(1, 6, 1)
            self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
            self.scaled = weight_norm(nn.Linear(4, 4))
            self.special = nn.Linear(4, 4)

        def no_weight_decay(self) -> set[str]:
            return {"special.weight"}

    assert weight_names(Model()) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "pointwise.weight",
        "depthwise.weight",
        "scaled.parametrizations.weight.original1",
    }


def test_tied_parameters_count_once():
    net = nn.Module()
    net.a = nn.Linear(3, 3, bias=False)
    net.b = nn.Linear(3, 3, bias=False)
    net.fc = nn.Linear(3, 2, bias=False)
    net.b.weight = net.a.weight
    groups = groups_of(net, layers=(("a.weight",), ("fc.weight",)), layer_decay=0.5)
    assert [group["param_names"] for group in groups] == [["a.weight"], ["fc.weight"]]
    assert by_name(groups_of(net, layers=(("b.weight",), ("fc.weight",)), layer_decay=0.5))["a.weight"][0] == 0.2


def test_names_restrict_the_groups():
    groups = groups_of(Net(), names={"mix", "fc.bias"}, layer_decay=0.5)
    assert by_name(groups) == {"mix": (0.2, 0.1), "fc.bias": (0.4, 0.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": ("classifier",)}, "has no submodule 'classifier'; its own: stem, norm, fc"),
        ({"layers": (("stem.weight",), ("fc.weight",)), "layer_decay": 0.5}, "in no layer: class_token, fc.bias, "),
        ({"layers": (*LAYERS, ("stem.weight",)), "layer_decay": 0.5}, "'stem.weight' is in layers 0 and 3"),
        ({"layers": (*LAYERS, ("nothing",)), "layer_decay": 0.5}, "has no parameter 'nothing'"),
    ],
)
def test_what_does_not_fit_the_network_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        groups_of(Net(), **changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"head": (), "backbone_lr_scale": 0.1}, "optimizer.backbone_lr_scale=0.1: this network names no head"),
        ({"layers": (), "layer_decay": 0.5}, "optimizer.layer_decay=0.5: has no effect"),
    ],
)
def test_scales_without_a_meaning_name_the_key(changes, key):
    with pytest.raises(ConfigError, match=key):
        groups_of(Net(), **changes)


def test_a_network_that_is_all_head_takes_no_backbone_scale():
    net = nn.Module()
    net.fc = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="all of this network is its head"):
        groups_of(net, backbone_lr_scale=0.1)


def test_network_without_parameters():
    with pytest.raises(ValueError, match="Flatten has no parameters"):
        groups_of(nn.Flatten(), head=())


def test_table_shows_counts_and_rates():
    net = Net()
    net.stem.requires_grad_(False)
    table = format_groups(groups_of(net, backbone_lr_scale=0.05))
    assert table == (
        "parameter group    tensors  parameters  trainable    lr  weight decay\n"
        "backbone decay           2         280         64  0.02           0.1\n"
        "backbone no_decay        6          80         72  0.02             0\n"
        "head decay               1          32         32   0.4           0.1\n"
        "head no_decay            1           4          4   0.4             0\n"
        "total                   10         396        172"
    )
