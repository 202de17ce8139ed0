"""Published weights: state dicts of the right shapes in a temporary hub cache, read by the real path."""

import logging
import re
import threading
import time
import warnings

import pytest
import torch
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import TorchvisionModelConfig
from cvtrain.models import build_model
from cvtrain.models import download as hub
from cvtrain.models import torchvision_weights as published
from cvtrain.models.torchvision_weights import choose_weights


def config(arch, **settings):
    return TorchvisionModelConfig(**{"name": arch, "arch": arch, **settings})


def build(arch, *, num_classes=7, channels=3, image_size=224, **settings):
    return build_model(config(arch, **settings), num_classes=num_classes, channels=channels, image_size=image_size)


def publish(arch, folder, *, change=lambda state: state, **kwargs):
    """A random network's state dict where torch.hub would keep the published one; the network itself."""
    torch.manual_seed(17)
    net = models.get_model(arch, weights=None, **kwargs)
    url = models.get_model_weights(arch).DEFAULT.url
    torch.save(change(net.state_dict()), folder / url.rsplit("/", 1)[-1])
    return net


def same_except(ours, theirs, prefixes):
    for name, value in theirs.items():
        if not name.startswith(prefixes):
            assert torch.equal(ours[name], value), name
    return True


class TestCached:
    @pytest.mark.parametrize(
        ("arch", "head"),
        [
            ("resnet18", "fc."),
            ("squeezenet1_1", "classifier.1."),
            ("mobilenet_v3_small", "classifier.3."),
            ("mnasnet0_5", "classifier.1."),
            ("shufflenet_v2_x0_5", "fc."),
        ],
    )
    def test_all_but_the_head_is_loaded(self, arch, head, hub_dir, network_attempts, caplog):
        net = publish(arch, hub_dir)
        with caplog.at_level(logging.INFO):
            built = build(arch)
        assert same_except(built.module.state_dict(), net.state_dict(), (head,))
        assert built.module.get_submodule(built.head[0]).weight.shape[0] == 7
        assert f"new head: {head}weight, {head}bias" in caplog.text
        assert network_attempts == []

    def test_as_many_classes_keep_the_head(self, hub_dir):
        net = publish("squeezenet1_1", hub_dir)
        assert same_except(build("squeezenet1_1", num_classes=1000).module.state_dict(), net.state_dict(), ("nothing",))

    def test_names_of_old_densenets_are_read(self, hub_dir):
        def old_names(state):
            changed = type(state)(
                (re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name), value)
                for name, value in state.items()
            )
            assert "features.denseblock1.denselayer1.norm.1.weight" in changed
            return changed

        net = publish("densenet121", hub_dir, change=old_names)
        assert same_except(build("densenet121").module.state_dict(), net.state_dict(), ("classifier.",))

    def test_a_file_with_other_names_is_refused(self, hub_dir):
        publish("squeezenet1_1", hub_dir, change=lambda state: {f"net.{name}": value for name, value in state.items()})
        with pytest.raises(ConfigError, match=r"SqueezeNet1_1_Weights.IMAGENET1K_V1: does not fit SqueezeNet") as error:
            build("squeezenet1_1")
        assert "missing (50): features.0.weight" in str(error.value)
        assert "unexpected (52): net.features.0.weight" in str(error.value)

    def test_grey_images_get_the_sum_of_the_colours(self, hub_dir):
        net = publish("squeezenet1_1", hub_dir)
        built = build("squeezenet1_1", channels=1)
        torch.testing.assert_close(
            built.module.features[0].weight, net.features[0].weight.sum(1, keepdim=True), rtol=0, atol=0
        )
        assert same_except(built.module.state_dict(), net.state_dict(), ("classifier.1.", "features.0.weight"))

    def test_a_damaged_file_is_named(self, hub_dir, network_attempts):
        (hub_dir / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half a download")
        with pytest.raises(ConfigError, match=r"squeezenet1_1-b8a52dc0.pth is damaged\n  delete it"):
            build("squeezenet1_1")
        assert network_attempts == []


class TestAuxiliary:
    def test_googlenet_equals_torchvisions_own_pretrained_network(self, hub_dir):
        publish("googlenet", hub_dir, init_weights=True, aux_logits=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = models.googlenet(weights=models.GoogLeNet_Weights.DEFAULT).eval()
        built = build("googlenet", num_classes=1000)
        values = torch.rand(2, 3, 64, 64)
        # Theirs takes ImageNet's statistics and makes 0.5 and 0.5 of them; ours takes these.
        mean, std = (torch.tensor(list(x)).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = theirs((values - mean) / std)
        assert (built.mean, built.std) == ((0.5,) * 3, (0.5,) * 3)
        ours = built.module.eval()((values - 0.5) / 0.5)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)

    def test_without_auxiliary_heads_their_weights_are_left_out(self, hub_dir):
        net = publish("googlenet", hub_dir, init_weights=True, aux_logits=True)
        built = build("googlenet", aux_loss_weight=0.0)
        assert built.head == ("fc",)
        assert same_except(built.module.state_dict(), net.state_dict(), ("fc.", "aux1.", "aux2."))


class TestNotCached:
    def test_offline_names_file_folder_and_remedy_within_seconds(self, hub_dir, network_attempts):
        start = time.monotonic()
        with pytest.raises(ConfigError) as error:
            build("resnet18")
        assert time.monotonic() - start < 10
        message = str(error.value)
        for words in ("model.pretrained=true", "resnet18-f37072fd.pth", str(hub_dir), "model.pretrained=false"):
            assert words in message
        assert "the network is off in tests" in message
        assert len(network_attempts) >= 1
        assert list(hub_dir.iterdir()) == []

    def test_a_site_that_never_answers_is_given_up(self, hub_dir, monkeypatch):
        released = threading.Event()

        def hang(*args, **kwargs):
            released.wait(20)
            raise OSError("too late")

        monkeypatch.setattr(hub, "urlopen", hang)
        monkeypatch.setattr(hub, "_CONNECT_SECONDS", 0.1)
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"no answer from download.pytorch.org in 0.1 s"):
            hub.fetch_state("https://download.pytorch.org/models/resnet18-f37072fd.pth")
        assert time.monotonic() - start < 5
        released.set()

    def test_a_wrong_hash_is_refused(self, hub_dir, monkeypatch, tmp_path):
        # A file: URL goes through the same download as https:, hash check included.
        (tmp_path / "net-00000000.pth").write_bytes(b"something else")
        monkeypatch.setattr(hub, "is_reachable", lambda url: True)
        with pytest.raises(ConfigError, match=r"net-00000000.pth is not in the cache .* invalid hash value"):
            hub.fetch_state(f"file://{tmp_path}/net-00000000.pth")
        assert not (hub_dir / "net-00000000.pth").exists()

    def test_a_download_with_the_right_hash_is_kept(self, hub_dir, monkeypatch, tmp_path):
        import hashlib

        torch.save({"weight": torch.arange(3.0)}, tmp_path / "net.pth")
        digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
        (tmp_path / "net.pth").rename(tmp_path / f"net-{digest}.pth")
        monkeypatch.setattr(hub, "is_reachable", lambda url: True)
        state = hub.fetch_state(f"file://{tmp_path}/net-{digest}.pth")
        assert state["weight"].tolist() == [0, 1, 2]
        assert (hub_dir / f"net-{digest}.pth").exists()


class TestChoice:
    @pytest.mark.parametrize(
        ("weights", "name"),
        [
            (None, "IMAGENET1K_V2"),
            ("DEFAULT", "IMAGENET1K_V2"),
            ("IMAGENET1K_V1", "IMAGENET1K_V1"),
            ("ResNet50_Weights.IMAGENET1K_V1", "IMAGENET1K_V1"),
        ],
    )
    def test_by_name(self, weights, name):
        assert choose_weights(config("resnet50", weights=weights)).entry.name == name

    def test_a_wrong_name_lists_those_there_are(self):
        with pytest.raises(ConfigError) as error:
            choose_weights(config("resnet50", weights="IMAGENET1K_V3"))
        assert "it has IMAGENET1K_V1, IMAGENET1K_V2" in str(error.value)
        assert "did you mean IMAGENET1K_V" in str(error.value)

    @pytest.mark.parametrize(
        ("arch", "channels", "mean", "std"),
        [
            ("resnet18", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ("efficientnet_v2_l", 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ("inception_v3", 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ("resnet18", 1, (0.449,), (0.226,)),
        ],
    )
    def test_statistics_are_those_of_the_weights(self, arch, channels, mean, std):
        found = choose_weights(config(arch)).statistics(channels)
        assert found[0] == pytest.approx(mean)
        assert found[1] == pytest.approx(std)

    @pytest.mark.parametrize(
        ("arch", "weights", "interpolation", "short_side"),
        [
            ("resnet18", None, "bilinear", 256),
            ("resnet50", "IMAGENET1K_V2", "bilinear", 232),
            ("efficientnet_b0", None, "bicubic", 256),
            ("swin_v2_t", None, "bicubic", 260),
        ],
    )
    def test_resize_is_that_of_the_evaluation(self, arch, weights, interpolation, short_side):
        found, fraction = choose_weights(config(arch, weights=weights)).resize()
        assert found == interpolation
        assert choose_weights(config(arch, weights=weights)).image_size / fraction == pytest.approx(short_side)

    def test_vgg16_features_bring_no_classifier(self, on_meta, monkeypatch):
        chosen = choose_weights(config("vgg16", weights="IMAGENET1K_FEATURES"))
        assert chosen.without_values == ("classifier",)
        with on_meta():
            state = models.vgg16().state_dict()
            monkeypatch.setattr(published, "fetch_state", lambda url: state)
            built = build("vgg16", weights="IMAGENET1K_FEATURES", num_classes=1000)
        assert built.mean == pytest.approx((0.48235, 0.45882, 0.40784))


class TestLocalFile:
    def test_own_file_has_the_statistics_of_its_architecture(self, tmp_path, network_attempts):
        torch.manual_seed(5)
        net = models.squeezenet1_1(num_classes=7)
        torch.save(net.state_dict(), tmp_path / "mine.pth")
        built = build("squeezenet1_1", weights=str(tmp_path / "mine.pth"))
        assert same_except(built.module.state_dict(), net.state_dict(), ("nothing",))
        assert (built.mean, built.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert network_attempts == []

    def test_a_copy_of_the_published_file_brings_its_statistics(self, tmp_path):
        publish("squeezenet1_1", tmp_path)
        built = build("squeezenet1_1", weights=str(tmp_path / "squeezenet1_1-b8a52dc0.pth"))
        assert built.mean == (0.485, 0.456, 0.406)

    def test_weights_of_another_stem_point_at_it(self, tmp_path):
        net = build("resnet18", pretrained=False, image_size=32).module
        torch.save(net.state_dict(), tmp_path / "cifar.pt")
        with pytest.raises(ConfigError) as error:
            build("resnet18", weights=str(tmp_path / "cifar.pt"), image_size=32)
        assert "mis-shaped (1): conv1.weight [64, 3, 3, 3] for [64, 3, 7, 7]" in str(error.value)
        assert "model.stem" in str(error.value)


class TestVisionTransformer:
    @pytest.mark.parametrize(("image_size", "positions"), [(224, 197), (384, 577), (96, 37)])
    def test_position_embeddings_are_interpolated(self, image_size, positions, on_meta, monkeypatch):
        with on_meta():
            state = models.vit_b_16().state_dict()
            monkeypatch.setattr(published, "fetch_state", lambda url: state)
            built = build("vit_b_16", image_size=image_size)
        assert built.module.encoder.pos_embedding.shape == (1, positions, 768)
        assert state["encoder.pos_embedding"].shape == (1, 197, 768)

    def test_interpolation_keeps_class_token_and_a_flat_field(self):
        chosen = choose_weights(config("vit_b_16"))
        state = {"encoder.pos_embedding": torch.cat([torch.full((1, 1, 4), 9.0), torch.full((1, 49, 4), 2.5)], 1)}
        adapted = chosen.adapt(state, input_conv=None, image_size=160, patch_size=16, auxiliary=False)
        positions = adapted["encoder.pos_embedding"]
        assert positions.shape == (1, 101, 4)
        assert positions[:, 0].tolist() == [[9.0] * 4]
        torch.testing.assert_close(positions[:, 1:], torch.full((1, 100, 4), 2.5))
        reference = interpolate_embeddings(160, 16, dict(state))
        assert torch.equal(positions, reference["encoder.pos_embedding"])

    def test_names_of_old_transformers_are_read(self, tmp_path):
        # As published: the layers of an MLP block were called linear_1 and linear_2 before version 2 of the block.
        net = models.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3)
        old = type(net.state_dict())(
            (name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"), value)
            for name, value in net.state_dict().items()
        )
        old._metadata = {name: {"version": 1} for name in net.state_dict()._metadata}
        other = models.VisionTransformer(32, 16, 2, 2, 8, 16, num_classes=3)
        from cvtrain.models.weights import load_weights

        assert load_weights(other, old, head=("heads.head",), source="old") == ()
        assert same_except(other.state_dict(), net.state_dict(), ("nothing",))
