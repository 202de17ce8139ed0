"""Rules of group `augment`."""

from collections.abc import Callable, Iterator

from cvtrain.config.errors import Problem
from cvtrain.config.schema.root import Config
from cvtrain.config.transform_specs import transform_problems


def mixing_has_parts(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    augment = config.augment
    mixup, cutmix = augment.mixup_alpha > 0, augment.cutmix_alpha > 0
    if not (mixup and cutmix) and is_set("augment.cutmix_share"):
        yield Problem(
            "augment.cutmix_share",
            augment.cutmix_share,
            "has no effect unless both mixup and cutmix are on",
            "set augment.mixup_alpha and augment.cutmix_alpha above 0",
        )
    if not (mixup or cutmix) and is_set("augment.mix_prob"):
        yield Problem(
            "augment.mix_prob",
            augment.mix_prob,
            "has no effect with mixup and cutmix off",
            "set augment.mixup_alpha or augment.cutmix_alpha above 0",
        )
    for name, alpha in (("mixup", augment.mixup_alpha), ("cutmix", augment.cutmix_alpha)):
        if alpha > 0 and augment.mix_prob == 0 and is_set(f"augment.{name}_alpha"):
            yield Problem(
                f"augment.{name}_alpha", alpha, "has no effect with augment.mix_prob=0", "set augment.mix_prob above 0"
            )


def library_has_transforms(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not config.augment.transforms and is_set("augment.library"):
        yield Problem(
            "augment.library",
            config.augment.library,
            "has no effect without transforms",
            "list them in augment.transforms, or choose augment=light, standard or strong",
        )


def transforms_are_known(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from transform_problems(config.augment)


AUGMENT_CHECKS = (mixing_has_parts, library_has_transforms, transforms_are_known)
