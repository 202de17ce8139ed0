"""Config of group `logger`: several can be on, `logger=[csv,tensorboard,wandb]`."""

from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, Optional

from cvtrain.config.schema.fields import setting


class WandbMode(str, Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class CsvLoggerConfig:
    """metrics.jsonl and metrics.csv: always written, whether named or not."""


@dataclass
class TensorBoardConfig:
    """Event files in the run folder's tensorboard/."""

    flush_seconds: int = setting(30, "seconds between two flushes to disk", at_least=1)


@dataclass
class WandbConfig:
    """Weights & Biases. Without a key or a network the run is logged offline, with a warning."""

    project: Optional[str] = setting(None, "project; null: WANDB_PROJECT, else cvtrain")
    entity: Optional[str] = setting(None, "user or team; null: the account's default")
    name: Optional[str] = setting(None, "name of the run; null: WANDB_NAME, else the run folder's name")
    group: Optional[str] = setting(None, "group of runs that belong together")
    job_type: Optional[str] = setting(None, "job type")
    tags: List[str] = setting([], "tags")
    notes: Optional[str] = setting(None, "a longer text")
    mode: Optional[WandbMode] = setting(None, "online, offline or disabled; null: WANDB_MODE, else online")
    log_images: bool = setting(True, "send plots: samples, confusion matrix, curves")
    log_checkpoint: bool = setting(False, "send best.pt as an artifact at the end")
    init_timeout_seconds: int = setting(30, "seconds to wait for the server before logging offline", at_least=1)
    finish_timeout_seconds: int = setting(60, "seconds to wait for the last upload; the rest stays on disk", at_least=1)


@dataclass
class MLflowConfig:
    """MLflow tracking (extra: mlflow)."""

    experiment: Optional[str] = setting(None, "experiment; null: MLFLOW_EXPERIMENT_NAME, else cvtrain")
    run_name: Optional[str] = setting(None, "name of the run; null: the run folder's name")
    tracking_uri: Optional[str] = setting(None, "server or folder; null: MLFLOW_TRACKING_URI, else mlruns/ here")
    log_images: bool = setting(True, "send plots: samples, confusion matrix, curves")
    log_checkpoint: bool = setting(False, "send best.pt as an artifact at the end")


@dataclass
class LoggersConfig:
    csv: Optional[CsvLoggerConfig] = None
    tensorboard: Optional[TensorBoardConfig] = None
    wandb: Optional[WandbConfig] = None
    mlflow: Optional[MLflowConfig] = None


LOGGER_CONFIGS: Dict[str, type] = {
    "csv": CsvLoggerConfig,
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "mlflow": MLflowConfig,
}
