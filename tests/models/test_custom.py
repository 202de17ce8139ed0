import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import CustomModelConfig, Freeze
from cvtrain.models import build_model, set_backbone_trainable, summarize_model, without_weights


@pytest.fixture(autouse=True)
def users_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "support"))


def config(target, **settings):
    return CustomModelConfig(target=f"custom_networks.{target}", **settings)


def build(target, *, num_classes=5, channels=3, image_size=8, **settings):
    return build_model(config(target, **settings), num_classes=num_classes, channels=channels, image_size=image_size)


def test_a_class_with_its_own_arguments():
    built = build("TwoLayers", kwargs={"width": 4})
    assert built.module.body.weight.shape == (4, 3, 3, 3)
    assert built.module.head.weight.shape == (5, 4)
    assert built.head == ("head",)
    assert built.layers == (("body.weight", "body.bias"), ("head.weight", "head.bias"))
    assert built.convolutional


def test_a_function():
    assert build("small").module.head.in_features == 2


def test_channels_and_image_size_only_for_those_who_name_them():
    assert build("KnowsItsImages", channels=1, kwargs={"depth": 4}).module.seen == (5, 1, 8, 4)


def test_the_users_own_word_on_image_size_counts():
    with pytest.raises(ConfigError, match="shapes cannot be multiplied"):
        build("KnowsItsImages", kwargs={"image_size": 9})


def test_lazy_layers_get_their_shapes():
    built = build("Lazy")
    assert [tuple(p.shape) for p in built.module.parameters()] == [(6, 3, 3, 3), (6,), (5, 6 * 6 * 6), (5,)]
    assert built.head == ("head",)
    assert built.module.training


def test_the_last_layer_is_the_head_and_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO):
        built = build("HeadFirst")
    assert built.head == ("fixed",)
    assert "head: fixed, the last layer that is defined; set model.head" in caplog.text
    assert build("HeadFirst", head="classify").head == ("classify",)


def test_what_the_author_fixed_stays_fixed():
    built = build("HeadFirst", head="classify")
    assert built.fixed == {"fixed.weight"}
    set_backbone_trainable(built.module, built.head, trainable=True, fixed=built.fixed)
    assert [n for n, p in built.module.named_parameters() if not p.requires_grad] == ["fixed.weight"]


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        (
            "TwoLayers",
            {"kwargs": {"widht": 4}},
            ["model.kwargs={widht:4}", "'widht'", "TwoLayers(num_classes, width=8)"],
        ),
        ("TwoLayers", {"kwargs": {"num_classes": 4}}, ["model.kwargs.num_classes=4: the data decide", "5"]),
        ("no_classes", {"kwargs": {"width": 2}}, ["no_classes(width)", "it has to take num_classes"]),
        ("no_module", {}, ["model.target=custom_networks.no_module: gave a list, not a torch.nn.Module"]),
        ("NUMBER", {}, ["is a int, not a class or a function"]),
        ("WrongOutputs", {}, ["gives shape [2, 10] for images [2, 3, 8, 8]; it has to give logits [2, 5]"]),
        ("TwoLayers", {"head": "tail"}, ["model.head=tail: is no submodule of TwoLayers", "body, head"]),
        ("NeedsValues", {"head": "drop"}, ["model.head=drop: has no parameters"]),
    ],
)
def test_wrong_targets_are_told(target, settings, words):
    with pytest.raises(ConfigError) as error:
        build(target, **settings)
    for part in words:
        assert part in str(error.value)


def test_a_bug_of_the_users_own_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug of the user's own") as error:
        build("Fails")
    assert error.traceback[-1].path.name == "custom_networks.py"


def test_weights_of_a_local_file(tmp_path, caplog):
    source = build("TwoLayers", num_classes=9).module
    torch.save(source.state_dict(), tmp_path / "mine.pt")
    with caplog.at_level(logging.INFO):
        built = build("TwoLayers", weights=str(tmp_path / "mine.pt"))
    assert torch.equal(built.module.body.weight, source.body.weight)
    assert "head.weight, head.bias" in caplog.text
    assert without_weights(config("TwoLayers", weights="x.pt")).weights is None


def test_a_network_that_needs_values_runs_on_zeros_and_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    built = build("NeedsValues")
    module = built.module
    torch.set_rng_state(state)
    summary = summarize_model(module, (3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert summary.macs == 3 * 5
    assert module.norm.num_batches_tracked.item() == 0
    assert module.norm.running_mean.tolist() == [0, 0, 0]
    assert all(layer.training for layer in module.modules())


def test_wrong_shape_names_the_batch_and_its_settings(monkeypatch):
    import custom_networks

    def small(num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(10, num_classes))

    monkeypatch.setattr(custom_networks, "small", small, raising=True)
    with pytest.raises(ConfigError) as error:
        build("small")
    message = str(error.value)
    assert "its network cannot take images of shape [2, 3, 8, 8]: " in message
    assert "mat1 and mat2 shapes cannot be multiplied" in message
    assert "data.channels=3 and data.image_size=8" in message


def test_freezing_needs_a_head():
    assert build("HeadByHand").head == ()
    with pytest.raises(ConfigError, match=r"model.freeze=backbone: the network has no layer .*\n  name the part"):
        build("HeadByHand", freeze=Freeze.backbone)


def test_a_single_layer_is_its_own_head(monkeypatch):
    import custom_networks

    monkeypatch.setattr(custom_networks, "small", lambda num_classes: nn.Conv2d(3, num_classes, 8), raising=True)
    with pytest.raises(ConfigError, match=r"gives shape \[2, 5, 1, 1\]"):
        build("small")
