"""Smaller batches where few images would give a run a handful of steps."""

import pytest

from cvtrain.config.schema.root import Config
from cvtrain.training.batch_size import fit_batch_size


@pytest.mark.parametrize(
    ("num_images", "epochs", "world_size", "batch_size"),
    [
        (960, 10, 1, 32),  # 300 steps
        (959, 10, 1, 32),
        (928, 10, 1, 16),  # 290 of 32, 580 of 16
        (244, 10, 1, 8),  # 160 of 16
        (20, 10, 1, 8),  # 30 of 8, and no smaller
        (244, 100, 1, 32),
        (244, 10, 4, 8),  # two images for each process
        (244, 10, 8, 16),
    ],
)
def test_batches_are_halved_until_there_are_300_steps(compose_config, num_images, epochs, world_size, batch_size):
    config = compose_config("model=resnet18", f"trainer.epochs={epochs}")
    assert config.trainer.min_steps == 300
    fitted = fit_batch_size(config, num_images, None, world_size=world_size)
    assert (fitted.data.batch_size, config.data.batch_size) == (batch_size, 32)
    assert (fitted.data.eval_batch_size or fitted.data.batch_size) == 32


@pytest.mark.parametrize(
    "override",
    ["data.batch_size=32", "trainer.max_steps=5", "trainer.grad_accum_steps=2", "model.freeze_bn_stats=false"],
)
def test_what_fixes_the_steps_leaves_the_batch_alone(compose_config, override):
    config = compose_config("model=resnet18", override)
    assert config.trainer.min_steps is None and fit_batch_size(config, 10, None) is config


def test_other_recipes_leave_the_batch_alone():
    assert fit_batch_size(Config(), 10, None).data.batch_size == Config().data.batch_size


def test_a_resumed_run_keeps_its_batches(compose_config):
    config = compose_config("model=resnet18", "trainer.epochs=100")
    assert fit_batch_size(config, 244, {"batch_size": 8}).data.batch_size == 8
    assert fit_batch_size(config, 10, {}) is config  # a checkpoint of before
