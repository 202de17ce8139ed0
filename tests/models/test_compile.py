"""`CompiledModel`: which batches go through compiled code, and what happens where nothing can be compiled."""

import logging

import pytest
import torch
from torch import nn

from cvtrain.commands.train import train
from cvtrain.models.compile import CompiledModel


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for torch.compile: notes what it is asked for, and doubles what the model gives."""
    calls = []

    def fake(model, **options):
        calls.append(options)
        return lambda images: 2 * model(images)

    monkeypatch.setattr(torch, "compile", fake)
    return calls


def make(model, *, size=8, passes=1, mode="default"):
    usual = [size, passes]
    return CompiledModel(model, mode=mode, micro_batches=lambda: (usual[0], usual[1])), usual


def test_batches_of_the_usual_size_are_compiled_once_and_others_go_as_they_are(compiler, caplog):
    caplog.set_level(logging.INFO)
    model = nn.Linear(3, 2)
    compiled, _ = make(model)
    assert compiler == []  # nothing before it is needed
    for size in (5, 8, 8, 3, 8):
        images = torch.rand(size, 3)
        assert torch.equal(compiled(images), (2 if size == 8 else 1) * model(images))
    assert compiler == [{"mode": "default", "dynamic": False}]
    told = [record.message for record in caplog.records]
    assert told[0].startswith("trainer.compile: compiling for batches of 8 images") and "compiled in 0 s" in told[1]


def test_smaller_micro_batches_are_compiled_anew(compiler):
    compiled, usual = make(nn.Linear(3, 2), mode="max_autotune")
    compiled(torch.rand(8, 3))
    usual[:] = [4, 2]
    images = torch.rand(4, 3)
    assert torch.equal(compiled(images), 2 * compiled.model(images))
    assert [call["mode"] for call in compiler] == ["max-autotune", "max-autotune"]


def test_one_graph_per_step_ends_where_batches_are_split(compiler, caplog):
    compiled, usual = make(nn.Linear(3, 2), mode="reduce_overhead")
    compiled(torch.rand(8, 3))
    usual[:] = [4, 2]
    images = torch.rand(4, 3)
    assert torch.equal(compiled(images), compiled.model(images))
    assert "going on without: trainer.compile_mode=reduce_overhead takes whole batches" in caplog.text


def test_without_a_compiler_it_goes_on_with_one_warning(monkeypatch, caplog):
    def fail(model, **options):
        def call(images):
            raise RuntimeError("\nno C++ compiler\nlong explanation")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    compiled, _ = make(nn.Linear(3, 2))
    images = torch.rand(8, 3)
    for _ in range(3):
        assert torch.equal(compiled(images), compiled.model(images))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["trainer.compile: going on without: RuntimeError: no C++ compiler"]


def test_memory_that_does_not_suffice_is_no_fault_of_the_compiler(monkeypatch):
    def out_of_memory(images):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda model, **options: out_of_memory)
    compiled, _ = make(nn.Linear(3, 2))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            compiled(torch.rand(8, 3))


def test_a_run_compiles_training_steps_and_nothing_else(compiler, compose_config, tmp_path):
    settings = ("trainer.device=cpu", "trainer.epochs=1", "plots=false", "model.hidden=[8]")
    settings += ("data.batch_size=100", "trainer.compile=true", "trainer.ema_decay=0.9")
    train(compose_config(*settings), run_dir=tmp_path / "run")
    assert compiler == [{"mode": "default", "dynamic": False}]
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert not any("_orig_mod" in name for name in state["model"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_trains_as_the_plain_model_does(compose_config, tmp_path):
    settings = ("trainer.device=cpu", "trainer.precision=fp32", "trainer.epochs=2", "plots=false")
    settings += ("model.hidden=[16]", "model.dropout=0", "data.batch_size=100")
    losses = [
        train(compose_config(*settings, f"trainer.compile={compiled}"), run_dir=tmp_path / compiled).metrics["val/loss"]
        for compiled in ("false", "true")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce_overhead"])
def test_compiled_steps_on_a_gpu_learn_as_plain_ones(compose_config, tmp_path, mode):
    settings = ("trainer.device=cuda", "trainer.precision=fp32", "trainer.epochs=3", "plots=false")
    settings += ("model.hidden=[64]", "model.dropout=0", "data.batch_size=100")
    plain = train(compose_config(*settings), run_dir=tmp_path / "plain")
    compiled = train(
        compose_config(*settings, "trainer.compile=true", f"trainer.compile_mode={mode}"), run_dir=tmp_path / mode
    )
    assert compiled.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=2e-2)
