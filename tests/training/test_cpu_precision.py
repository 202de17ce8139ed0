"""`trainer.precision=auto` on a CPU with bfloat16: timed once, remembered, kept by a resumed run."""

import json

import pytest
import torch
from torch import nn

from cvtrain.checkpoint import load_checkpoint
from cvtrain.commands.train import train
from cvtrain.training import cpu_precision
from cvtrain.training.cpu_precision import measure_rates

RUN = ("data=digits", "model=mlp", "model.hidden=[8]", "trainer.device=cpu", "plots=false", "trainer.epochs=1")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
    )


@pytest.mark.parametrize("trains_all", [True, False])
def test_rates_are_images_per_second_of_the_clock(trains_all):
    # Each step of the clock is twice as long as the one before: fp32 takes 1 s, bf16 4 s.
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    rates = measure_rates(network(), torch.randn(8, 3, 8, 8), trains_all=trains_all, now=lambda: next(ticks))
    assert rates == {"fp32": 16.0, "bf16": 4.0}


def test_measuring_changes_neither_the_network_nor_random_numbers():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_rates(model, torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), trains_all=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """A CPU that has bfloat16; `timed(fp32, bf16)` sets what is measured and returns the list of measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_precision, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(cpu_precision, "_processor", lambda: "a processor")

    def set_rates(fp32, bf16):
        calls = []

        def measure(model, images, *, trains_all):
            calls.append((tuple(images.shape), trains_all))
            return {"fp32": fp32, "bf16": bf16}

        monkeypatch.setattr(cpu_precision, "measure_rates", measure)
        return calls

    return set_rates


@pytest.mark.parametrize(("bf16", "chosen"), [(50.0, "fp32"), (110.0, "fp32"), (115.0, "bf16"), (300.0, "bf16")])
def test_the_faster_is_taken_and_both_are_said(compose_config, timed, tmp_path, caplog, bf16, chosen):
    calls = timed(100.0, bf16)
    with caplog.at_level("INFO"):
        train(compose_config(*RUN), run_dir=tmp_path / "run")
    assert calls == [((8, 1, 8, 8), True)]
    assert f"precision: {chosen}, by 2 steps each way: fp32 100.0, bf16 {bf16:.1f} images/s" in caplog.text
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["precision"] == chosen


def test_it_is_measured_once_per_network(compose_config, timed, tmp_path):
    calls = timed(100.0, 50.0)
    for number, width in enumerate((8, 8, 9)):
        train(compose_config(*RUN, f"model.hidden=[{width}]"), run_dir=tmp_path / str(number))
    assert len(calls) == 2
    file = tmp_path / "cache" / "cvtrain" / "precision.json"
    for damage in ("", "[]", '{"a": 1}', "\x00"):
        file.write_text(damage)
        train(compose_config(*RUN), run_dir=tmp_path / f"after {damage!r}".replace("/", ""))
    assert len(calls) == 6


def test_a_resumed_run_keeps_its_precision(compose_config, timed, tmp_path):
    timed(100.0, 300.0)
    train(compose_config(*RUN), run_dir=tmp_path / "run")
    calls = timed(300.0, 100.0)
    train(compose_config(*RUN, f"resume={tmp_path / 'run'}", "trainer.epochs=2"), run_dir=tmp_path / "run")
    assert calls == []
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["precision"] == "bf16"


def test_a_chosen_precision_is_not_measured(compose_config, timed, tmp_path):
    calls = timed(100.0, 300.0)
    train(compose_config(*RUN, "trainer.precision=fp32"), run_dir=tmp_path / "run")
    assert calls == []
