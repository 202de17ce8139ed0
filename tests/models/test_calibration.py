"""A network that looks at training images before it trains, in a run, a run that goes on, and an evaluation."""

import pytest
import torch
from torch.nn import functional as F

from cvtrain.commands.evaluate import evaluate
from cvtrain.commands.train import train
from cvtrain.config.schema.root import EvaluateConfig
from cvtrain.training.build import build_run

SETTINGS = (
    "model=small_convnet",
    "model.widths=[8,8]",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "optimizer.norm_and_bias_lr_scale=4",
    "augment=small_batch",
    "plots=false",
    "data.device_cache=always",
    "data.batch_size=256",
    "trainer.epochs=2",
    "trainer.ema_decay=0.9",
    "trainer.eval_flip=true",
    "trainer.device=cpu",
    "trainer.precision=fp32",
)


def last_weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)["model"]


@pytest.mark.slow
def test_a_run_with_all_of_it_goes_on_to_the_bit_and_is_scored_the_same(compose_config, tmp_path):
    whole = train(compose_config(*SETTINGS), run_dir=tmp_path / "whole")
    filters = last_weights(whole.run_dir)["patches.weight"]

    run = build_run(compose_config(*SETTINGS), tmp_path / "again")
    images = run.trainer.normalizer(run.loaders.train.dataset[next(run.loaders.train.plan.batches(0))].images)
    assert torch.equal(run.trainer.model.patches.weight, filters)  # fixed while everything else trains
    values = F.conv2d(images, filters).transpose(0, 1).flatten(1)[:4]
    assert (values @ values.T / values.shape[1]).diag().tolist() == pytest.approx([1.0] * 4, abs=0.3)
    run.loaders.close()
    run.logger.finish(0)

    train(compose_config(*SETTINGS, "trainer.max_steps=4"), run_dir=tmp_path / "cut")
    train(compose_config(*SETTINGS, f"resume={tmp_path / 'cut'}"), run_dir=tmp_path / "cut")
    other = last_weights(tmp_path / "cut")
    for name, value in last_weights(whole.run_dir).items():
        assert torch.equal(value, other[name]), name

    scored = evaluate(EvaluateConfig(checkpoint=str(tmp_path / "whole/checkpoints/best.pt")), run_dir=tmp_path / "e1")
    assert scored.metrics["val/loss"] == whole.metrics["val/loss"]
    plain = evaluate(
        EvaluateConfig(checkpoint=str(tmp_path / "whole/checkpoints/best.pt"), eval_flip=False), run_dir=tmp_path / "e2"
    )
    assert plain.metrics["val/loss"] != scored.metrics["val/loss"]
