import argparse
from collections import OrderedDict

import pytest
import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.models.weights import (
    FileWeights,
    WeightsError,
    load_checkpointed_weights,
    load_weights,
    read_state,
    strip_prefix,
)


def network(classes=3):
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), head=nn.Linear(5, classes)))


def load(module, state, **kwargs):
    return load_weights(module, state, source="a file", **kwargs)


class TestLoadWeights:
    def test_same_shapes_copy_everything(self):
        source, target = network(), network()
        assert load(target, source.state_dict(), head=("head",)) == ()
        assert all(
            torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
        )

    def test_a_head_for_another_number_of_classes_keeps_its_values(self):
        source, target = network(1000), network(3)
        before = target.head.weight.clone()
        assert load(target, source.state_dict(), head=("head",)) == ("head.weight", "head.bias")
        assert torch.equal(target.head.weight, before)
        assert torch.equal(target.body.weight, source.body.weight)

    def test_a_file_without_the_head_is_a_backbone(self):
        state = {name: value for name, value in network().state_dict().items() if not name.startswith("head")}
        assert load(network(), state, head=("head",)) == ("head.weight", "head.bias")

    def test_missing_unexpected_and_misshaped_are_named(self):
        state = network().state_dict()
        state["body.weight"] = torch.zeros(5, 9)
        state["boddy.bias"] = state.pop("body.bias")
        with pytest.raises(ConfigError) as error:
            load(network(), state, head=("head",))
        assert str(error.value) == (
            "model.weights=a file: does not fit Sequential:\n"
            "    mis-shaped (1): body.weight [5, 9] for [5, 4]\n"
            "    missing (1): body.bias\n"
            "    unexpected (1): boddy.bias\n"
            "  choose the network that the weights were made for"
        )

    @pytest.mark.parametrize(
        ("name", "words"), [("body.bias", "missing (1): body.bias"), (None, "unexpected (1): extra.weight")]
    )
    def test_each_kind_alone(self, name, words):
        state = network().state_dict()
        if name:
            del state[name]
        else:
            state["extra.weight"] = torch.zeros(1)
        with pytest.raises(ConfigError) as error:
            load(network(), state, head=("head",))
        assert words in str(error.value)

    def test_long_lists_are_cut_with_a_count(self):
        net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
        with pytest.raises(ConfigError, match=r"missing \(20\): 0.weight, .*3.bias and 12 more"):
            load(net, {"x": torch.zeros(1)})

    def test_files_older_than_the_batch_counter_load(self):
        source = network()
        state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
        target = network()
        assert load(target, state) == ()
        assert torch.equal(target.norm.running_var, source.norm.running_var)

    def test_the_state_given_is_left_alone(self):
        state = network(1000).state_dict()
        names, metadata = list(state), dict(state._metadata)
        load(network(), state, head=("head",))
        assert list(state) == names
        assert dict(state._metadata) == metadata


class TestReadState:
    def saved(self, tmp_path, content, name="weights.pt"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    @pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
    def test_opens_larger_files(self, tmp_path, wrapper):
        state = network().state_dict()
        read = read_state(self.saved(tmp_path, {wrapper: state, "epoch": 3})).state
        assert list(read) == list(state)
        assert torch.equal(read["body.weight"], state["body.weight"])

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
    def test_takes_off_the_prefixes_of_wrappers(self, tmp_path, prefix):
        state = network().state_dict()
        wrapped = {prefix + name: value for name, value in state.items()}
        read = strip_prefix(read_state(self.saved(tmp_path, wrapped)), network())
        assert list(read.state) == list(state)
        assert read.source == f"{tmp_path}/weights.pt, prefix {prefix} removed"

    def test_own_names_that_begin_alike_stay(self):
        inner = nn.Sequential(OrderedDict(model=network()))
        weights = FileWeights(inner.state_dict(), "file")
        assert strip_prefix(weights, inner) is weights

    def test_entries_outside_the_prefix_are_left_out_and_said(self):
        state = {f"net.{name}": value for name, value in network().state_dict().items()}
        read = strip_prefix(FileWeights({**state, "loss.weight": torch.ones(1)}, "file"), network())
        assert list(read.state) == list(network().state_dict())
        assert read.source == "file, prefix net. removed, 1 entries outside it left out"

    @pytest.mark.parametrize(
        ("content", "entry"),
        [
            (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema"),
            (
                lambda raw, ema: {
                    "model": raw,
                    "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{name}": ema[name] for name in ema}},
                },
                "model_ema",
            ),
            (lambda raw, ema: {"model": raw, "ema": {"num_updates": 3, "model": ema}}, "ema"),
            (lambda raw, ema: {"model": raw, "average": {"num_updates": 3, "model": ema}}, "average"),
        ],
    )
    def test_ema_is_taken_and_said(self, tmp_path, content, entry):
        raw = {name: torch.zeros_like(value) for name, value in network().state_dict().items()}
        ema = {name: value + 7 for name, value in raw.items()}
        path = self.saved(tmp_path, content(raw, ema))
        read = strip_prefix(read_state(path), network())
        assert read.state["body.weight"].mean().item() == 7
        assert f"entry {entry}; model.weights_entry=" in read.source
        other = "state_dict" if "state_dict" in entry else "model"
        assert read_state(path, entry=other).state["body.weight"].mean().item() == 0
        with pytest.raises(ConfigError, match=r"model.weights_entry=nothing: .* has no state dict there; it has "):
            read_state(path, entry="nothing")

    def test_namespace_beside_the_weights_is_read(self, tmp_path):
        state = network().state_dict()
        path = self.saved(tmp_path, {"state_dict": state, "args": argparse.Namespace(lr=1)})
        assert list(read_state(path).state) == list(state)

    def test_safetensors(self, tmp_path):
        from safetensors.torch import save_file

        state = network().state_dict()
        save_file(state, tmp_path / "weights.safetensors")
        read = read_state(tmp_path / "weights.safetensors").state
        assert {name: value.tolist() for name, value in read.items()} == {n: v.tolist() for n, v in state.items()}

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigError, match=rf"model.weights={tmp_path}/no.pt: there is no file"):
            read_state(tmp_path / "no.pt")

    @pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(range(256)) * 20])
    def test_a_damaged_file(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            read_state(tmp_path / name)

    def test_a_truncated_file(self, tmp_path):
        path = self.saved(tmp_path, network().state_dict())
        path.write_bytes(path.read_bytes()[:-400])
        with pytest.raises(ConfigError, match="cannot be read as tensors"):
            read_state(path)

    def test_a_file_with_code_in_it_is_refused(self, tmp_path):
        # A whole pickled network would run whatever its class's import runs.
        with pytest.raises(ConfigError, match="cannot be read as tensors and plain values") as error:
            read_state(self.saved(tmp_path, network()))
        message = str(error.value)
        assert "it holds objects of torch.nn.modules" in message
        assert "torch.save(network.state_dict(), path)" in message
        assert "python -c" in message and "weights_weights.pt" in message and "\x1b" not in message

    @pytest.mark.parametrize(
        ("content", "words"),
        [({"lr": 0.1, "epoch": 2}, "but a dict of lr, epoch"), ([torch.zeros(1)], "but a list"), ({}, "but a dict")],
    )
    def test_a_file_of_something_else(self, tmp_path, content, words):
        with pytest.raises(ConfigError, match=words):
            read_state(self.saved(tmp_path, content))


class TestCheckpointedWeights:
    def test_round_trip_is_equal_to_the_bit(self):
        source, target = network(), network()
        source(torch.randn(8, 4))  # moves the batch-norm statistics
        load_checkpointed_weights(target, source.state_dict())
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())

    def test_a_plain_dict_loads(self):
        # mnasnet refuses a state dict without the layout version that a plain dict has lost.
        from torchvision.models import mnasnet0_5

        source, target = mnasnet0_5(num_classes=2), mnasnet0_5(num_classes=2)
        load_checkpointed_weights(target, dict(source.state_dict()))
        assert torch.equal(target.layers[0].weight, source.layers[0].weight)

    def test_every_difference_is_named_and_nothing_is_copied(self):
        target = network()
        before = {name: value.clone() for name, value in target.state_dict().items()}
        state = dict(network().state_dict())
        state["head.weight"] = torch.zeros(9, 5)
        state["more"] = torch.zeros(2)
        state["body.bias"] = "no tensor"
        del state["norm.weight"]
        with pytest.raises(WeightsError) as error:
            load_checkpointed_weights(target, state)
        for words in (
            "mis-shaped (1): head.weight [9, 5] for [3, 5]",
            "unexpected (1): more",
            "no tensor (1): body.bias",
            "missing (1): norm.weight",
        ):
            assert words in str(error.value)
        assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())

    def test_extra_state_of_a_module_comes_along(self):
        class Counting(nn.Linear):
            count = 0

            def get_extra_state(self):
                return {"count": self.count}

            def set_extra_state(self, state):
                self.count = state["count"]

        source, target = Counting(2, 2), Counting(2, 2)
        source.count = 5
        load_checkpointed_weights(target, source.state_dict())
        assert target.count == 5
        assert load(Counting(2, 2), source.state_dict(), head=("",)) == ()


def test_checkpoint_without_an_ema_gives_the_model(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}, "ema": None}, tmp_path / "best.pt")
    assert torch.equal(read_state(tmp_path / "best.pt").state["weight"], torch.zeros(2))
