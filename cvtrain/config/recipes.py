"""Recipes: settings that belong together for one situation, and give way to whatever the user sets.

What each was chosen by: docs/accuracy.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cvtrain.config.schema.model import CustomModelConfig, Freeze, HeadInit, PretrainedConfig
from cvtrain.config.schema.optim import BCEConfig, OneCycleConfig
from cvtrain.config.schema.root import Config, Recipe
from cvtrain.config.schema.trainer import Average

# Of the epochs of a run that fine-tunes; onecycle warms up by itself.
WARMUP_SHARE = 0.1
# Optimizer steps that fine-tuning needs; of few images, smaller batches give them at the same cost.
MIN_STEPS = 300
RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    Recipe.scratch: {},
    Recipe.finetune: {
        "model.freeze_bn_stats": True,
        "optimizer.backbone_lr_scale": 0.1,
        "trainer.epochs": 10,
        "trainer.eval_at_start": True,
        "trainer.average": Average.wise_ft,
    },
    Recipe.frozen: {"trainer.epochs": 0, "trainer.eval_at_start": True},
}


def choose_recipe(config: Config) -> Recipe:
    """Return the recipe of the run: `recipe` itself, or what `auto` finds by the model's settings."""
    if config.recipe is not Recipe.auto:
        return config.recipe
    model = config.model
    is_pretrained = (isinstance(model, PretrainedConfig) and model.pretrained) or (
        isinstance(model, CustomModelConfig) and model.weights is not None
    )
    if not is_pretrained:
        return Recipe.scratch
    if model.freeze is Freeze.none or model.unfreeze_epoch is not None:
        return Recipe.finetune
    # A frozen backbone: the logistic regression on the features is the whole training, where it can be.
    trains = model.head_init is HeadInit.zero or config.augment.views is not None or isinstance(config.loss, BCEConfig)
    return Recipe.scratch if trains else Recipe.frozen


def apply_recipe(config: Config, is_set: Callable[[str], bool]) -> None:
    """Set what the recipe of `config` says and the user has not set; `config.recipe` becomes the one chosen."""
    config.recipe = choose_recipe(config)
    for key, value in RECIPES[config.recipe].items():
        section, _, name = key.partition(".")
        if not is_set(key):
            setattr(getattr(config, section), name, value)
    if config.recipe is Recipe.finetune and not _fixes_steps(config, is_set):
        config.trainer.min_steps = MIN_STEPS
    scheduler = config.scheduler
    warms_up = config.recipe is Recipe.finetune and not isinstance(scheduler, OneCycleConfig)
    if warms_up and scheduler.warmup_steps is None and not is_set("scheduler.warmup_epochs"):
        scheduler.warmup_epochs = WARMUP_SHARE * config.trainer.epochs


def _fixes_steps(config: Config, is_set: Callable[[str], bool]) -> bool:
    """Whether the user has said how many images a step has or how many steps there are, or batch norm needs many."""
    trainer = config.trainer
    return (
        is_set("data.batch_size")
        or is_set("trainer.min_steps")
        or trainer.grad_accum_steps > 1
        or trainer.overfit_one_batch
        or trainer.limit_train_batches is not None
        or trainer.max_steps is not None
        or not config.model.freeze_bn_stats
    )
