import copy
import math

import pytest
import torch
from torchvision import models

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Stem, TorchvisionModelConfig
from cvtrain.models import build_model, without_weights
from cvtrain.models import torchvision as torchvision_models
from cvtrain.models.dry_run import forward_meta
from cvtrain.models.heads import init_head, torchvision_head
from cvtrain.models.torchvision import list_torchvision

NAMES = models.list_models(module=models)


def config(arch, **settings):
    return TorchvisionModelConfig(**{"name": arch, "arch": arch, "pretrained": False, **settings})


def build(arch, *, num_classes=7, channels=3, image_size=224, **settings):
    return build_model(config(arch, **settings), num_classes=num_classes, channels=channels, image_size=image_size)


def test_every_name_is_known():
    assert list_torchvision() == NAMES
    assert len(NAMES) >= 80


@pytest.mark.parametrize("arch", NAMES)
def test_only_the_head_changes(arch, on_meta, monkeypatch):
    # The build runs the network once on shapes, to see that it takes the images: these are the outputs. It leaves that
    # out from the size on that is tried here.
    outputs = []
    monkeypatch.setattr(torchvision_models, "_PUBLISHED_SIZE", 1000)
    monkeypatch.setattr(torchvision_models, "_AUXILIARY_SIZE", 1000)
    monkeypatch.setattr(
        torchvision_models, "forward_meta", lambda *args: outputs.append(forward_meta(*args)) or outputs[-1]
    )
    image_size = 299 if arch == "inception_v3" else 224
    own = {"init_weights": True, "aux_logits": True} if arch in ("googlenet", "inception_v3") else {}
    with on_meta():
        reference = models.get_model(arch, weights=None, num_classes=1000, **own)
        built = build(arch, image_size=image_size)
    before, after = reference.state_dict(), built.module.state_dict()
    assert list(before) == list(after)
    changed = {name for name in before if before[name].shape != after[name].shape}
    head_names = {name for name in after if name.rpartition(".")[0] in built.head}
    assert changed == head_names
    assert head_names
    for name in changed:
        assert before[name].shape[0] == 1000
        assert after[name].shape == (7, *before[name].shape[1:])
    logits = outputs[0] if isinstance(outputs[0], tuple) else (outputs[0],)
    assert [tuple(output.shape) for output in logits] == [(2, 7)] * len(built.head)
    names = [name for group in built.layers for name in group]
    assert sorted(names) == sorted(name for name, _ in built.module.named_parameters())
    assert {name for name in names if name in head_names} <= set(built.layers[-1])
    assert built.convolutional == (not arch.startswith(("vit_", "swin_")))
    assert built.aux_loss_weight == (0.3 if own else 0.0)


def test_auxiliary_heads_are_named_after_the_main_one(on_meta):
    with on_meta():
        assert build("googlenet").head == ("fc", "aux1.fc2", "aux2.fc2")
        assert build("inception_v3", image_size=299).head == ("fc", "AuxLogits.fc")


def test_auxiliary_heads_answer_in_training_only(on_meta):
    with on_meta():
        net = build("googlenet").module
    outputs = forward_meta(net.train(), (2, 3, 224, 224))
    assert [tuple(output.shape) for output in outputs] == [(2, 7)] * 3
    assert forward_meta(net.eval(), (2, 3, 224, 224)).shape == (2, 7)


def test_aux_loss_weight_zero_leaves_auxiliary_heads_out(on_meta):
    with on_meta():
        built = build("googlenet", aux_loss_weight=0.0)
    assert built.head == ("fc",)
    assert not [name for name in built.module.state_dict() if name.startswith("aux")]


@pytest.mark.parametrize("arch", NAMES)
def test_new_head_starts_at_zero(arch, on_meta):
    """Only the heads are made: the network itself is of shapes alone."""
    with on_meta():
        built = build(arch, image_size=299 if arch == "inception_v3" else 224)
    for name in built.head:
        layer = built.module.get_submodule(name).to_empty(device="cpu")
        torch.nn.init.ones_(layer.weight)
        init_head(layer, ("",))
        largest = 0.0 if isinstance(layer, torch.nn.Linear) else 1e-3
        assert layer.weight.abs().max().item() <= largest
        assert layer.bias is None or layer.bias.abs().max().item() == 0


QUICK = ["resnet18", "efficientnet_b0", "squeezenet1_1", "vgg11", "mnasnet0_5"]
REST = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in QUICK]


@pytest.mark.parametrize("arch", [*QUICK, *REST])
def test_first_loss_is_ln_of_the_classes(arch):
    torch.manual_seed(0)
    size = {"inception_v3": 299, "googlenet": 224}.get(arch, 224 if arch.startswith(("vit_", "maxvit")) else 64)
    net = build(arch, image_size=size, num_classes=5).module
    outputs = net(torch.randn(4, 3, size, size))
    for logits in outputs if isinstance(outputs, tuple) else [outputs]:  # auxiliary heads too
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
        assert loss.item() == pytest.approx(math.log(5), rel=0.02)
    loss.backward()
    assert net.get_submodule(torchvision_head(net)[0]).weight.grad.abs().max() > 0


def test_same_seed_same_backbone_as_torchvision():
    torch.manual_seed(3)
    ours = build("mnasnet0_5").module.state_dict()
    torch.manual_seed(3)
    theirs = models.mnasnet0_5(num_classes=7).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith("classifier.1"))


@pytest.mark.parametrize("arch", ["resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_grey_image_gives_what_it_gave_as_rgb(arch):
    torch.manual_seed(0)
    rgb = build(arch)
    torch.manual_seed(0)
    grey = build(arch, channels=1)
    assert list(grey.module.state_dict()) == list(rgb.module.state_dict())
    images = torch.randn(2, 1, 64, 64)
    expected = rgb.module.eval()(images.expand(2, 3, 64, 64))
    torch.testing.assert_close(grey.module.eval()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["vit_b_16", "densenet121", "googlenet", "mnasnet0_5", "maxvit_t", "convnext_tiny"])
def test_grey_changes_only_the_first_convolution(arch, on_meta):
    with on_meta():
        rgb, grey = build(arch).module.state_dict(), build(arch, channels=1).module.state_dict()
    assert list(rgb) == list(grey)
    changed = [name for name in rgb if rgb[name].shape != grey[name].shape]
    assert len(changed) == 1
    shape = list(rgb[changed[0]].shape)
    assert list(grey[changed[0]].shape) == [shape[0], 1, *shape[2:]]


class TestStem:
    @pytest.mark.parametrize(
        ("image_size", "stem", "kernel"),
        [(32, Stem.auto, 3), (64, Stem.auto, 3), (65, Stem.auto, 7), (32, Stem.imagenet, 7), (128, Stem.small, 3)],
    )
    def test_auto_is_small_up_to_64_pixels(self, image_size, stem, kernel, on_meta):
        with on_meta():
            net = build("resnet18", image_size=image_size, stem=stem).module
        assert net.conv1.weight.shape == (64, 3, kernel, kernel)
        assert type(net.maxpool).__name__ == ("Identity" if kernel == 3 else "MaxPool2d")

    def test_small_stem_keeps_names_and_resolution(self, on_meta):
        with on_meta():
            net = build("wide_resnet50_2", image_size=32).module
            plain = models.wide_resnet50_2()
        assert list(net.state_dict()) == list(plain.state_dict())
        maps = []
        net.layer1.register_forward_pre_hook(lambda layer, inputs: maps.append(inputs[0].shape))
        forward_meta(net, (2, 3, 32, 32))
        assert maps == [(2, 64, 32, 32)]

    def test_initialisation_is_fan_out(self):
        torch.manual_seed(0)
        weight = build("resnet18", image_size=32).module.conv1.weight
        assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)

    def test_published_weights_have_the_imagenet_stem(self):
        with pytest.raises(ConfigError, match=r"model.stem=small: the published weights have the 7x7"):
            build("resnet18", stem=Stem.small, pretrained=True)


class TestImageSize:
    @pytest.mark.parametrize(
        ("arch", "image_size", "words"),
        [
            ("vit_b_16", 200, ["vit_b_16 takes multiples of 16", "data.image_size=192"]),
            ("maxvit_t", 200, ["multiples of 224", "data.image_size=224"]),
            ("alexnet", 32, ["alexnet cannot take images of 32x32", "data.image_size=63 is the smallest"]),
            ("vgg11", 16, ["data.image_size=32 is the smallest"]),
            ("inception_v3", 224, ["data.image_size=299 is the smallest", "model.aux_loss_weight=0"]),
        ],
    )
    def test_a_size_that_cannot_be_is_told_with_one_that_can(self, arch, image_size, words, on_meta):
        with pytest.raises(ConfigError) as error, on_meta():
            build(arch, image_size=image_size)
        assert str(error.value).startswith(f"data.image_size={image_size}: ")
        for part in words:
            assert part in str(error.value)

    @pytest.mark.parametrize(
        ("arch", "image_size"), [("alexnet", 63), ("vgg11", 32), ("vit_b_16", 192), ("maxvit_t", 448), ("swin_t", 96)]
    )
    def test_the_sizes_that_were_named_work(self, arch, image_size, on_meta):
        with on_meta():
            net = build(arch, image_size=image_size).module
        assert forward_meta(net, (2, 3, image_size, image_size)).shape == (2, 7)

    def test_inception_without_auxiliary_head_takes_small_images(self, on_meta):
        with on_meta():
            assert build("inception_v3", image_size=75, aux_loss_weight=0.0).head == ("fc",)

    def test_the_check_leaves_the_network_alone(self):
        torch.manual_seed(0)
        generator = torch.get_rng_state()
        net = models.shufflenet_v2_x0_5(num_classes=7)
        after = torch.get_rng_state()
        torch.set_rng_state(generator)
        ours = build("shufflenet_v2_x0_5").module
        assert torch.equal(torch.get_rng_state(), after)
        assert ours.training
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), net.buffers(), strict=True))


def test_without_weights_builds_the_same_network(on_meta):
    chosen = config("resnet18", pretrained=True)
    plain = without_weights(chosen)
    assert (plain.pretrained, plain.weights, plain.stem) == (False, None, Stem.imagenet)
    assert chosen.pretrained
    assert without_weights(config("vgg11", pretrained=True)).stem == Stem.auto
    random = config("resnet18")
    assert without_weights(random) == copy.copy(random)
