"""Settings of `cvtrain check`, beside those of its groups data and model."""

from dataclasses import dataclass, field

from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import DataConfig
from cvtrain.config.schema.fields import setting
from cvtrain.config.schema.model import ModelConfig
from cvtrain.config.schema.predict import LOG_LEVELS


@dataclass
class CheckConfig:
    """`cvtrain check data=...`: look for what makes the figures of a data set wrong."""

    output_root: str = setting("runs/check", "folder of all checks")
    log_level: str = setting("INFO", "level of console and check.log", choices=LOG_LEVELS)
    device: str = setting("auto", "for features, with model.weights: auto, cpu, cuda, cuda:1, mps")
    data: DataConfig = field(default_factory=DataConfig)
    # Options of data choose these two for training. check never augments, and takes a model with model.weights only.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)


def has_weights(config: CheckConfig) -> bool:
    """Return whether labels are checked: the command names weights."""
    return getattr(config.model, "weights", None) is not None
