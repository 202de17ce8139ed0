"""Config of group `augment`: what is done to training images, per image in workers and per batch on the device."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, List, Optional

from cvtrain.config.schema.fields import required, setting


class AugmentLibrary(str, Enum):
    torchvision = "torchvision"
    albumentations = "albumentations"


@dataclass
class AugmentConfig:
    """Training only: evaluation resizes by `data.resize` and nothing else.

    A list item is a transform's name (`HorizontalFlip`) or a mapping of its name to its arguments
    (`RandomResizedCrop: {scale: [0.35, 1.0]}`).
    """

    name: str = required("name of the augmentation")
    library: AugmentLibrary = setting(
        AugmentLibrary.torchvision, "library of the per-image transforms: torchvision (its v2) or albumentations"
    )
    transforms: List[Any] = setting([], "per-image transforms, in order, on uint8 images in the workers")
    batch_transforms: List[Any] = setting(
        [], "transforms of kornia or our own, in order, on float batches on the device"
    )
    mixup_alpha: float = setting(0.0, "mixup: Beta(alpha, alpha) of the mix; 0: off", at_least=0)
    cutmix_alpha: float = setting(0.0, "cutmix: Beta(alpha, alpha) of the cut area; 0: off", at_least=0)
    mix_prob: float = setting(1.0, "share of batches that are mixed", at_least=0, at_most=1)
    cutmix_share: float = setting(
        0.5, "with both on, share of mixed batches that get cutmix, not mixup", at_least=0, at_most=1
    )
    views: Optional[int] = setting(
        None,
        "with model.freeze=backbone, augmented versions of each image, computed once: epoch e shows version e mod "
        "views; null: a new one in each epoch",
        at_least=1,
    )
    preview: bool = setting(True, "write plots/train_samples.png, a grid of augmented training images")
