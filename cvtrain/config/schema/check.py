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
    data: DataConfig = field(default_factory=DataConfig)
    # Options of data choose these two for training; check looks at neither by itself.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
