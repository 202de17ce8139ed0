import pytest
import torch
from torch import nn
from torchvision import models

from cvtrain.models.heads import torchvision_head
from cvtrain.models.layer_groups import group_by_depth


def groups_of(arch, on_meta, **kwargs):
    with on_meta():
        net = models.get_model(arch, weights=None, **kwargs)
    return group_by_depth(net, torchvision_head(net))


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("resnet18", 1 + 8 + 1),
        ("resnet50", 1 + 16 + 1),
        ("vgg16_bn", 13 + 2 + 1),
        ("alexnet", 5 + 2 + 1),
        ("vit_b_16", 1 + 12 + 1),
        ("densenet121", 1 + 58 + 3 + 1),
        ("convnext_tiny", 1 + 18 + 3 + 1),
        ("swin_t", 1 + 12 + 3 + 1),
        ("squeezenet1_1", 1 + 8 + 1),
        ("mobilenet_v2", 1 + 17 + 1 + 1),
        ("googlenet", 3 + 9 + 1),
        ("regnet_y_400mf", 1 + 16 + 1),
    ],
)
def test_a_group_is_a_block(arch, count, on_meta):
    kwargs = {"init_weights": False, "aux_logits": True} if arch == "googlenet" else {}
    assert len(groups_of(arch, on_meta, **kwargs)) == count


def test_resnet18_in_full(on_meta):
    groups = groups_of("resnet18", on_meta)
    assert groups[0] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert {name.rsplit(".", 2)[0] for name in groups[1]} == {"layer1.0"}
    assert groups[7][-1] == "layer4.0.downsample.1.bias"
    assert groups[-1] == ("fc.weight", "fc.bias")


def test_pixels_to_features_is_one_layer(on_meta):
    groups = groups_of("vit_b_16", on_meta)
    assert set(groups[0]) == {"class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding"}
    assert "encoder.ln.weight" in groups[-2]
    assert groups[-1] == ("heads.head.weight", "heads.head.bias")


def test_auxiliary_branches_go_with_the_head(on_meta):
    groups = groups_of("googlenet", on_meta, init_weights=False, aux_logits=True)
    assert {name.split(".")[0] for name in groups[-1]} == {"fc", "aux1", "aux2"}


def test_norms_join_the_layer_before_and_leading_ones_the_first():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert group_by_depth(net, ("3",)) == (
        ("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"),
        ("3.weight", "3.bias"),
    )


def test_without_a_head_everything_is_still_there():
    assert group_by_depth(nn.LayerNorm(3), ()) == (("weight", "bias"),)
    assert group_by_depth(nn.Linear(3, 2), ("",)) == (("weight", "bias"),)


def test_shared_parameters_are_named_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    net[1].weight = net[0].weight
    names = [name for group in group_by_depth(net, ("2",)) for name in group]
    assert names == ["0.weight", "0.bias", "1.bias", "2.weight", "2.bias"]
    assert isinstance(net[0].weight, torch.Tensor)
