"""Rules of kept features: when a frozen backbone gives the same features in every epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cvtrain.config.errors import Problem
from cvtrain.config.schema.data import Balance, DatasetConfig
from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config


@dataclass(frozen=True)
class Blocker:
    """Why features cannot be kept, and what to set so that they can."""

    rule: str
    remedy: str


def feature_obstacle(config: Config) -> Blocker | None:
    """What in the settings keeps the features of an image from being the same in every epoch; None: nothing."""
    model, augment = config.model, config.augment
    if model.freeze is Freeze.none:
        return Blocker("the backbone trains (model.freeze=none)", "set model.freeze=backbone")
    if model.unfreeze_epoch is not None:
        return Blocker(f"the backbone trains from epoch {model.unfreeze_epoch} on", "leave model.unfreeze_epoch out")
    if per_batch := batch_augmentation(config):
        return Blocker(f"{per_batch} changes images anew in each step", "leave it out")
    if augment.transforms and augment.views is None:
        return Blocker(
            f"augment={augment.name} makes new images in each epoch",
            "set augment=none, or augment.views=8 for that many versions of each image",
        )
    if config.trainer.limit_train_batches is not None:
        return Blocker("trainer.limit_train_batches takes other images in each epoch", "leave it out")
    if config.trainer.eval_flip:
        return Blocker("trainer.eval_flip=true evaluates mirror images too", "leave it out")
    if config.data.balance is Balance.oversample:
        return Blocker("data.balance=oversample samples other images in each epoch", "set data.balance=class_weights")
    if isinstance(config.data, DatasetConfig) and augment.views is None and model.cache_features is None:
        return Blocker(
            "a Dataset of your own may give another image each time",
            "set model.cache_features=true if it does not, or augment.views=8 for that many versions of each image",
        )
    return None


def batch_augmentation(config: Config) -> str:
    """The key of what is done to whole batches on the device; empty if nothing is."""
    augment = config.augment
    mixes = augment.mix_prob > 0
    if augment.mixup_alpha > 0 and mixes:
        return "augment.mixup_alpha"
    if augment.cutmix_alpha > 0 and mixes:
        return "augment.cutmix_alpha"
    return "augment.batch_transforms" if augment.batch_transforms else ""


def features_can_be_kept(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    wanted = config.model.cache_features
    obstacle = feature_obstacle(config)
    if wanted and obstacle is not None:
        yield Problem("model.cache_features", True, f"cannot be: {obstacle.rule}", obstacle.remedy)
    if wanted is False and config.model.freeze is Freeze.none:
        yield Problem("model.cache_features", False, "has no effect with model.freeze=none", "leave it out")


def views_are_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    augment, model = config.augment, config.model
    if augment.views is None or not is_set("augment.views"):
        return
    if model.freeze is Freeze.none or model.unfreeze_epoch is not None:
        rule = "has no effect on a backbone that trains: views are for features that are kept"
        yield Problem("augment.views", augment.views, rule, "set model.freeze=backbone, or leave it out")
    elif per_batch := batch_augmentation(config):
        rule = f"cannot be with {per_batch}, which changes images anew in each step"
        yield Problem("augment.views", augment.views, rule, "leave one of the two out")
    elif not augment.transforms and not isinstance(config.data, DatasetConfig):
        rule = "has no effect without transforms: all views would be the same"
        yield Problem("augment.views", augment.views, rule, "choose augment=light, standard or strong, or leave it out")
    elif augment.views > 1 and augment.views > config.trainer.epochs:
        rule = f"has no effect beyond trainer.epochs={config.trainer.epochs}: epoch e shows view e mod views"
        yield Problem("augment.views", augment.views, rule, "set fewer views or more epochs")


FEATURE_CHECKS = (features_can_be_kept, views_are_used)
