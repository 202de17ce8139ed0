"""Recipes give way to whatever the user sets."""

import pytest

from cvtrain.config.schema.root import Recipe


@pytest.mark.parametrize(
    ("overrides", "recipe", "epochs"),
    [
        ([], Recipe.scratch, 20),
        (["model=resnet18", "model.pretrained=false"], Recipe.scratch, 20),
        (["model=resnet18"], Recipe.finetune, 10),
        (["model=resnet18", "model.freeze=backbone"], Recipe.frozen, 0),
        (["model=resnet18", "model.freeze=backbone", "model.unfreeze_epoch=3"], Recipe.finetune, 10),
        (["model=resnet18", "model.freeze=backbone", "model.head_init=zero"], Recipe.scratch, 20),
        (["model=resnet18", "model.freeze=backbone", "loss=bce"], Recipe.scratch, 20),
        (["model=resnet18", "recipe=scratch"], Recipe.scratch, 20),
    ],
)
def test_auto_follows_the_model(compose_config, overrides, recipe, epochs):
    config = compose_config(*overrides)
    assert (config.recipe, config.trainer.epochs) == (recipe, epochs)


def test_what_the_user_sets_wins(compose_config):
    config = compose_config("model=resnet18", "trainer.epochs=3", "optimizer.backbone_lr_scale=1.0")
    assert (config.trainer.epochs, config.optimizer.backbone_lr_scale) == (3, 1.0)
    assert config.trainer.eval_at_start is True


def test_what_an_experiment_sets_wins_even_beside_a_setting_of_the_same_section(compose_config):
    config = compose_config("experiment=flowers102_finetune", "trainer.max_steps=5", "optimizer.lr=0.01")
    assert config.trainer.epochs == 40
    assert config.recipe is Recipe.finetune


def test_a_schedule_without_the_setting_is_left_alone(compose_config):
    assert compose_config("model=resnet18", "scheduler=onecycle").scheduler.warmup_epochs == 0.0


def test_the_warm_up_is_a_tenth_of_the_run(compose_config):
    assert compose_config("model=resnet18").scheduler.warmup_epochs == 1.0
    assert compose_config("model=resnet18", "trainer.epochs=1").scheduler.warmup_epochs == pytest.approx(0.1)
    assert (
        compose_config("model=resnet18", "trainer.epochs=1", "scheduler.warmup_steps=3").scheduler.warmup_epochs == 0.0
    )
