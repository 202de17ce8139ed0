"""Config of group `model`."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Dict, List, Optional

from cvtrain.config.schema.fields import required, setting

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def is_file_name(weights: str) -> bool:
    """Return whether `model.weights` means a file, not a name that a library gave to published weights."""
    return weights.endswith(WEIGHT_SUFFIXES) or "/" in weights or "\\" in weights


class Activation(str, Enum):
    relu = "relu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"


class Norm(str, Enum):
    none = "none"
    batch = "batch"
    layer = "layer"


class Freeze(str, Enum):
    none = "none"
    backbone = "backbone"


class HeadInit(str, Enum):
    auto = "auto"
    zero = "zero"
    logreg = "logreg"


class Stem(str, Enum):
    auto = "auto"
    imagenet = "imagenet"
    small = "small"


@dataclass
class ModelConfig:
    """Settings of every network: how it is fine-tuned."""

    name: str = required("name of the network, part of the run folder's name")
    freeze: Freeze = setting(
        Freeze.none, "backbone: only the head trains, and batch-norm statistics of the rest stand still"
    )
    unfreeze_epoch: Optional[int] = setting(
        None, "with freeze=backbone, epoch (1 is the first) from which everything trains; null: never", at_least=2
    )
    freeze_bn_stats: bool = setting(
        False, "batch norm keeps the running statistics of the pretrained weights, and uses them in training too"
    )
    head_init: HeadInit = setting(
        HeadInit.auto,
        "start of a new head on pretrained weights: zero logits, logreg (the logistic regression on the backbone's "
        "features of the training images), or auto: logreg on a frozen backbone; where all trains, zero, with the "
        "regression as a candidate for best.pt",
    )
    cache_features: Optional[bool] = setting(
        None,
        "with freeze=backbone, compute what the head receives once and train the head on that; null: where it is the "
        "same as going through the backbone in every step",
    )
    summary: bool = setting(False, "show the tables of layers and parameter groups at the start, not only in train.log")


@dataclass
class MLPConfig(ModelConfig):
    """flatten -> [linear -> norm -> activation -> dropout] per hidden layer -> linear."""

    name: str = "mlp"
    hidden: List[int] = setting([512, 512], "widths of the hidden layers; []: a linear classifier", at_least=1)
    activation: Activation = setting(Activation.relu, "nonlinearity: relu, gelu, silu or tanh")
    norm: Norm = setting(Norm.none, "normalisation after each linear layer: none, batch or layer")
    dropout: float = setting(0.3, "probability of dropping a hidden unit", at_least=0, below=1)


@dataclass
class SmallConvNetConfig(ModelConfig):
    """A narrow convolutional network for images of about 32 pixels, which learns in few epochs."""

    name: str = "small_convnet"
    widths: List[int] = setting(
        [64, 256, 256], "channels of each block of two convolutions; each block halves the image", at_least=1
    )
    whiten: bool = setting(
        True, "first layer fixed to whiten 2x2 patches of the first 2,048 training images; false: it trains"
    )
    logit_scale: float = setting(1 / 9, "factor on the logits", above=0)


@dataclass
class PretrainedConfig(ModelConfig):
    """Networks that have published weights."""

    arch: str = required("the library's name of the network")
    pretrained: bool = setting(True, "start from published weights; false: random")
    weights: Optional[str] = setting(
        None, "which weights: a name of the library's (IMAGENET1K_V1) or a local file; null: the library's best"
    )
    weights_entry: Optional[str] = setting(
        None, "entry of a local file of weights, such as state_dict; null: the EMA where there is one, else the model"
    )


@dataclass
class TorchvisionModelConfig(PretrainedConfig):
    """A classification network of torchvision by name; its head is replaced."""

    stem: Stem = setting(
        Stem.auto,
        "first layers of resnet, resnext and wide_resnet: imagenet (7x7 stride 2, then max pooling), "
        "small (3x3 stride 1, for images of about 32 pixels), auto (small if image_size <= 64 and no weights)",
    )
    aux_loss_weight: float = setting(
        0.3, "weight of each auxiliary head's loss (googlenet, inception_v3 have them)", at_least=0
    )


@dataclass
class TimmModelConfig(PretrainedConfig):
    """A network of the timm library by name (extra: timm); its head is replaced."""

    kwargs: Dict[str, Any] = setting({}, "more arguments for timm.create_model, such as drop_path_rate")


@dataclass
class CustomModelConfig(ModelConfig):
    """The user's own class or function, called with num_classes and kwargs; it returns a torch Module."""

    name: str = "custom"
    target: str = required("import path, such as my_package.nets.MyNet")
    kwargs: Dict[str, Any] = setting({}, "arguments for it, besides num_classes")
    head: Optional[str] = setting(None, "name of the submodule that is the head, for freeze and learning-rate scales")
    weights: Optional[str] = setting(None, "local file with a state dict to start from")
    weights_entry: Optional[str] = setting(
        None, "entry of that file, such as state_dict; null: the EMA where there is one, else the model"
    )


@dataclass
class SavedModelConfig:
    """The network of a checkpoint."""

    target: Optional[str] = setting(
        None, "import path of the class, for a model=custom checkpoint: a checkpoint itself never names code to run"
    )


MODEL_CONFIGS: Dict[str, type] = {
    "mlp": MLPConfig,
    "small_convnet": SmallConvNetConfig,
    "torchvision": TorchvisionModelConfig,
    "timm": TimmModelConfig,
    "custom": CustomModelConfig,
}
