"""Whole runs on a GPU: what is kept on the device, sent ahead or cut in two comes to the same weights.

The same tests run on the CPU, where they are slow ones, so that they are right when a GPU is there.
"""

import pytest
import torch

from cvtrain.commands.train import train

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)]
SETTINGS = (
    "model.hidden=[32]",
    "augment=small_batch",
    "plots=false",
    "data.batch_size=200",
    "scheduler=constant",
    "trainer.epochs=3",
    "trainer.deterministic=true",
    "trainer.precision=fp32",
    "trainer.ema_decay=0.9",
)


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")["model"]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_set_on_the_device_trains_as_one_that_is_sent(compose_config, tmp_path, device):
    for wanted in ("always", "never"):
        config = compose_config(*SETTINGS, f"trainer.device={device}", f"data.device_cache={wanted}")
        train(config, run_dir=tmp_path / wanted)
    assert_equal(weights(tmp_path / "always"), weights(tmp_path / "never"))


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_that_was_cut_counts_the_batches_that_it_trained_on(compose_config, tmp_path, device):
    """A batch more than that was sent ahead."""
    settings = (*SETTINGS, f"trainer.device={device}", "data.device_cache=never")
    train(compose_config(*settings), run_dir=tmp_path / "whole")
    train(compose_config(*settings, "trainer.max_steps=11"), run_dir=tmp_path / "cut")
    train(compose_config(*settings, f"resume={tmp_path / 'cut'}"), run_dir=tmp_path / "cut")
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.gpu
def test_a_small_network_learns_in_bf16_on_a_gpu(compose_config, tmp_path):
    settings = ("model=small_convnet", "model.widths=[32,32]", "augment=small_batch", "plots=false")
    settings += ("augment.batch_transforms=[{ShiftCrop:{padding:1}}]", "data.batch_size=200", "trainer.epochs=10")
    settings += ("trainer.device=cuda", "trainer.precision=bf16", "trainer.eval_flip=false", "optimizer.lr=0.01")
    result = train(compose_config(*settings), run_dir=tmp_path / "run")
    assert result.metrics["val/accuracy"] > 0.9
