import logging
import math
import time

import pytest
import torch

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import TimmModelConfig
from cvtrain.models import build_model, without_weights

timm = pytest.importorskip("timm")


def config(arch, **settings):
    return TimmModelConfig(**{"name": arch, "arch": arch, "pretrained": False, **settings})


def build(arch, *, num_classes=7, channels=3, image_size=64, **settings):
    return build_model(config(arch, **settings), num_classes=num_classes, channels=channels, image_size=image_size)


@pytest.mark.parametrize(
    ("arch", "head", "groups", "convolutional"),
    [
        ("resnet18", ("fc",), 1 + 8 + 1, True),
        ("vit_tiny_patch16_224", ("head",), 1 + 12 + 1, False),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), 1 + 12 + 1, False),
        ("convnext_atto", ("head.fc",), None, True),
    ],
)
def test_head_layers_and_kind(arch, head, groups, convolutional):
    built = build(arch)
    assert built.head == head
    assert all(built.module.get_submodule(name).weight.shape[0] == 7 for name in head)
    names = [name for group in built.layers for name in group]
    assert sorted(names) == sorted(name for name, _ in built.module.named_parameters())
    assert {name.rpartition(".")[0] for name in built.layers[-1]} == set(head)
    if groups is not None:
        assert len(built.layers) == groups
    assert built.convolutional == convolutional
    assert built.mean is None


def test_transformers_are_built_for_the_image_size():
    assert build("vit_tiny_patch16_224", image_size=64).module.pos_embed.shape == (1, 17, 192)


def test_grey_and_kwargs():
    net = build("resnet18", channels=1, kwargs={"drop_rate": 0.3}).module
    assert net.conv1.weight.shape == (64, 1, 7, 7)
    assert net.drop_rate == 0.3


def test_local_weights_sum_the_colours_of_a_grey_network(tmp_path):
    source = build("resnet18", num_classes=3).module
    torch.save(source.state_dict(), tmp_path / "mine.pt")
    built = build("resnet18", channels=1, pretrained=True, weights=str(tmp_path / "mine.pt"))
    assert torch.equal(built.module.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(built.module.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert torch.equal(built.module.fc.weight, torch.zeros(7, 512))


def test_local_weights_have_the_statistics_of_their_architecture(tmp_path, caplog):
    source = build("tf_efficientnet_lite0").module
    torch.save({"state_dict": source.state_dict()}, tmp_path / "mine.pt")
    with caplog.at_level(logging.INFO):
        built = build("tf_efficientnet_lite0", pretrained=True, weights=str(tmp_path / "mine.pt"))
    assert (built.mean, built.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (built.interpolation, built.crop_fraction) == ("bicubic", 0.875)
    assert (
        f"loaded {tmp_path}/mine.pt (entry state_dict); mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], bicubic"
        in caplog.text
    )


QUICK = ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto", "dla34", "levit_128s"]
# One of each family, the smallest that takes 224 pixels.
REST = (
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny", "cspresnet50", "crossvit_tiny_240"),
    *("deit_tiny_patch16_224", "densenet121", "edgenext_xx_small", "efficientformer_l1", "fastvit_t8", "ghostnet_050"),
    *("gmixer_12_224", "hardcorenas_a", "hrnet_w18_small", "inception_v4", "lcnet_035", "maxvit_rmlp_pico_rw_256"),
    *("mixer_s32_224", "mobilenetv3_small_050", "mobilevit_xxs", "nfnet_l0", "pit_ti_224", "poolformer_s12"),
    *("pvt_v2_b0", "regnetx_002", "repvgg_a0", "resmlp_12_224", "rexnet_100", "swin_tiny_patch4_window7_224"),
    *("tnt_s_patch16_224", "twins_svt_small", "visformer_tiny", "xcit_nano_12_p16_224"),
)


@pytest.mark.parametrize("arch", [*QUICK, *[pytest.param(arch, marks=pytest.mark.slow) for arch in REST]])
def test_first_loss_is_ln_of_the_classes(arch):
    size = {"crossvit_tiny_240": 240, "maxvit_rmlp_pico_rw_256": 256, "inception_v4": 299}.get(arch, 224)
    net = build(arch, image_size=size, num_classes=5).module
    logits = net(torch.randn(2, 3, size, size))
    assert torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).item() == pytest.approx(
        math.log(5), rel=0.02
    )


@pytest.mark.parametrize(
    ("arch", "settings", "words"),
    [
        ("resnet81", {}, ["model.arch=resnet81: timm", "no network of that name", "did you mean resnet18"]),
        (
            "resnet18",
            {"kwargs": {"drop_rat": 1}},
            ["model.kwargs={drop_rat:1}", "unexpected keyword argument 'drop_rat'"],
        ),
        ("resnet18", {"kwargs": {"num_classes": 3}}, ["model.kwargs.num_classes=3: is decided by the data"]),
        ("resnet18", {"weights": "b7_in9k", "pretrained": True}, ["model.weights=b7_in9k", "it has a1_in1k, a2_in1k"]),
        ("vit_tiny_patch16_224", {"image_size": 8}, ["data.image_size=8: vit_tiny_patch16_224 cannot take"]),
    ],
)
def test_wrong_settings_are_told(arch, settings, words):
    with pytest.raises(ConfigError) as error:
        build(arch, **settings)
    for part in words:
        assert part in str(error.value)


def test_offline_without_a_cache_fails_within_seconds_and_is_never_random(network_attempts, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ConfigError) as error:
        build("resnet18", pretrained=True)
    assert time.monotonic() - start < 10
    message = str(error.value)
    for words in ("model.pretrained=true", "timm/resnet18.a1_in1k", str(tmp_path), "model.pretrained=false"):
        assert words in message
    assert constants.HF_HUB_OFFLINE is False


def test_without_weights_keeps_the_tag():
    plain = without_weights(config("resnet18", pretrained=True, weights="a2_in1k"))
    assert (plain.arch, plain.pretrained, plain.weights) == ("resnet18.a2_in1k", False, None)
    local = without_weights(config("resnet18", pretrained=True, weights="mine.pt"))
    assert (local.arch, local.weights) == ("resnet18", None)
