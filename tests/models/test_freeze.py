import copy

import pytest
import torch
from torch.nn import functional as F
from torchvision import models

from cvtrain.models import set_backbone_trainable, train_mode
from cvtrain.models.heads import torchvision_head


def steps(net, count=3):
    """SGD with momentum and weight decay, which would move even a parameter without a gradient of its own."""
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=0.1
    )
    for _ in range(count):
        optimizer.zero_grad()
        outputs = net(torch.randn(4, 3, 64, 64))
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        F.cross_entropy(logits, torch.randint(5, (4,))).backward()
        optimizer.step()


def changed(before, net):
    return {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_frozen_backbone_stands_still_to_the_bit(arch):
    torch.manual_seed(0)
    net = models.get_model(arch, num_classes=5)
    head = torchvision_head(net)
    set_backbone_trainable(net, head, trainable=False)
    train_mode(net, head, backbone_frozen=True)
    before = copy.deepcopy(net.state_dict())
    steps(net)
    assert changed(before, net) == {f"{head[0]}.weight", f"{head[0]}.bias"}

    set_backbone_trainable(net, head, trainable=True)
    train_mode(net, head, backbone_frozen=False)
    steps(net, count=1)
    assert changed(before, net) == set(before)


def test_modes_are_eval_for_the_backbone_and_train_for_the_head():
    net = models.mobilenet_v3_small(num_classes=5)
    train_mode(net, ("classifier.3",), backbone_frozen=True)
    assert [name for name, layer in net.named_modules() if layer.training] == ["classifier.3"]
    train_mode(net, ("classifier.3",), backbone_frozen=False)
    assert all(layer.training for layer in net.modules())


def test_a_frozen_backbone_is_one_function():
    torch.manual_seed(0)
    net = models.efficientnet_b0(num_classes=5)  # dropout and stochastic depth
    train_mode(net, torchvision_head(net), backbone_frozen=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images), net(images))


def test_auxiliary_heads_rest_with_a_frozen_backbone():
    net = models.googlenet(num_classes=5, init_weights=False, aux_logits=True)
    head = torchvision_head(net)
    set_backbone_trainable(net, head, trainable=False)
    train_mode(net, head, backbone_frozen=True)
    outputs = net(torch.randn(2, 3, 64, 64))
    assert isinstance(outputs, torch.Tensor)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"{name}.{part}" for name in ("fc", "aux1.fc2", "aux2.fc2") for part in ("weight", "bias")
    }


def test_old_gradients_are_dropped():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net(torch.ones(1, 2)).sum().backward()
    set_backbone_trainable(net, ("1",), trainable=False)
    assert net[0].weight.grad is None
    assert net[1].weight.grad is not None
