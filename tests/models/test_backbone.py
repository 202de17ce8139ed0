"""Taking a network apart at its head: what the head gets, and the networks that cannot be taken apart."""

import feature_networks
import pytest
import torch

from cvtrain.models.backbone import SplitError, check_backbone, compute_features
from cvtrain.models.freeze import set_backbone_trainable, train_mode
from cvtrain.models.torchvision import torchvision_head


def frozen(module, head):
    set_backbone_trainable(module, (head,), trainable=False)
    train_mode(module, (head,), backbone_frozen=True)
    return module


@pytest.mark.parametrize("kind", ["Photographic", "MapHead"])
def test_the_head_on_the_features_is_the_network_on_the_images(kind):
    torch.manual_seed(0)
    module = frozen(getattr(feature_networks, kind)(10, 1), "classifier")
    images = torch.randn(6, 1, 8, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    form = check_backbone(module, "classifier", images)
    features = compute_features(module, "classifier", images)

    assert (form.shape, form.dtype, form.num_bytes) == ((16, 4, 4), torch.float32, 1024)
    assert features.shape == (6, 16, 4, 4)
    torch.manual_seed(5)
    whole = module(images)
    torch.manual_seed(5)
    assert torch.equal(module.classifier(features), whole)  # dropout in the head draws alike
    assert module.classifier.training and not module.body.training
    module.eval()
    for name, value in before.items():
        assert name.startswith("classifier.2.") or torch.equal(value, module.state_dict()[name]), name


def test_examining_changes_nothing():
    module = frozen(feature_networks.Photographic(10, 1), "classifier")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    check_backbone(module, "classifier", torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.classifier.training and not module.body.training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_layout_of_maps_is_kept():
    module = frozen(feature_networks.MapHead(10, 3), "classifier").to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert check_backbone(module, "classifier", images).memory_format is torch.channels_last


@pytest.mark.parametrize(
    ("kind", "arguments", "head", "words"),
    [
        ("GoesOn", (10, 1), "classifier", "goes on after its head, classifier"),
        ("GoesOnInPlace", (10, 1), "classifier", "goes on after its head"),
        ("CallsTwice", (10, 1), "classifier", "calls its head, classifier, 2 times"),
        ("NeverCalls", (10, 1), "classifier", "calls its head, classifier, 0 times"),
        ("TwoInputs", (10,), "head", "something else than one row of features"),
        ("Noisy", (10, 1), "classifier", "other features each time"),
        ("Neighbourly", (10, 1), "classifier", "depend on those beside it"),
        ("Photographic", (10, 1), "", "the head is the whole network"),
    ],
)
def test_a_network_that_cannot_be_taken_apart_says_why(kind, arguments, head, words):
    module = frozen(getattr(feature_networks, kind)(*arguments), head)
    with pytest.raises(SplitError, match=words):
        check_backbone(module, head, torch.randn(2, 1, 8, 8))


def test_a_part_of_the_backbone_that_trains_is_named():
    module = frozen(feature_networks.Photographic(10, 1), "classifier")
    module.body[0].weight.requires_grad_(True)
    with pytest.raises(SplitError, match=r"body\.0\.weight trains"):
        check_backbone(module, "classifier", torch.randn(2, 1, 8, 8))


def test_weights_that_backbone_and_head_share_are_seen():
    module = frozen(feature_networks.OneUntied(10), "head")
    with pytest.raises(SplitError, match=r"again\.weight trains"):
        check_backbone(module, "head", torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("arch", "width"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("convnext_tiny", 768), ("vit_b_16", 768), ("densenet121", 1024)],
)
def test_torchvision_networks_end_in_their_heads(arch, width):
    import torchvision

    settings = {"image_size": 32} if arch.startswith("vit") else {}
    module = torchvision.models.get_model(arch, weights=None, num_classes=5, **settings)
    (head,) = torchvision_head(module)
    frozen(module, head)
    assert check_backbone(module, head, torch.randn(2, 3, 32, 32)).shape == (width,)


def test_squeezenet_goes_on_after_its_head():
    import torchvision

    module = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=5)
    (head,) = torchvision_head(module)
    with pytest.raises(SplitError, match="goes on"):
        check_backbone(frozen(module, head), head, torch.randn(2, 3, 64, 64))
