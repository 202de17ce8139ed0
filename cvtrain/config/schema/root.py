"""The whole config of a verb, and its registration with Hydra under `/schema`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Dict, Optional, Tuple, Union

from hydra.core.config_store import ConfigStore

from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.auto import AutoConfig
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.data import DATA_CONFIGS, DataConfig, OnBadImage
from cvtrain.config.schema.export import ExportConfig
from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.logger import LOGGER_CONFIGS, LoggersConfig
from cvtrain.config.schema.model import MODEL_CONFIGS, ModelConfig, SavedModelConfig
from cvtrain.config.schema.optim import (
    LOSS_CONFIGS,
    OPTIMIZER_CONFIGS,
    SCHEDULER_CONFIGS,
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from cvtrain.config.schema.predict import LOG_LEVELS, MergeConfig, PredictConfig
from cvtrain.config.schema.report import ReportConfig
from cvtrain.config.schema.reproduce import ReproduceConfig
from cvtrain.config.schema.serve import ServeConfig
from cvtrain.config.schema.sweep import SweepConfig
from cvtrain.config.schema.trainer import CheckpointConfig, Precision, TrainerConfig


class Recipe(str, Enum):
    auto = "auto"
    scratch = "scratch"
    finetune = "finetune"
    frozen = "frozen"


@dataclass
class Config:
    """A training run."""

    name: str = setting("run", "name of the experiment: runs are kept in output_root/name/date_time")
    output_root: str = setting("runs", "folder of all runs")
    recipe: Recipe = setting(
        Recipe.auto,
        "defaults for a situation, which give way to whatever you set: scratch, finetune (pretrained weights), frozen "
        "(model.freeze=backbone), or auto: by the model",
    )
    seed: int = setting(0, "seed of weights, order and augmentation", at_least=0, at_most=2**32 - 1)
    seeds: Optional[int] = setting(
        None,
        "on the command line: as many runs, with seed, seed + 1, ..., and the mean of their figures with its interval",
        at_least=2,
        at_most=100,
    )
    folds: Optional[int] = setting(
        None,
        "on the command line: cross-validation, a run for each fold (data.fold), and the mean with its interval",
        at_least=2,
        at_most=100,
    )
    resume: Optional[str] = setting(
        None,
        "resume a run: a run folder or checkpoint, auto (the newest unfinished run of this name, else a new one), "
        "must (the same, but an error if there is none); null: a new run",
    )
    resume_on_changed_data: bool = setting(
        False, "resume within an epoch although images were added, removed, renamed, moved or replaced since"
    )
    log_level: str = setting("INFO", "level of console and train.log", choices=LOG_LEVELS)
    plots: bool = setting(True, "plot the pictures of the run; off in the trials of cvtrain sweep unless given")
    report: Optional[bool] = setting(None, "write report.html at the end of the run; null: as plots")
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggersConfig = field(default_factory=LoggersConfig)


class Split(str, Enum):
    train = "train"
    val = "val"
    test = "test"
    all = "all"


@dataclass
class EvaluateDataConfig:
    """Null: as the run that made the checkpoint had it."""

    root: Optional[str] = setting(None, "another folder of images, laid out like the run's own")
    file: Optional[str] = setting(None, "another manifest, for a run with data=csv")
    path: Optional[str] = setting(
        None, "name or folder of the set, for a data=huggingface checkpoint: a checkpoint never names what to fetch"
    )
    download: Optional[bool] = setting(None, "fetch what is missing; a checkpoint never does that by itself")
    image_size: Optional[int] = setting(None, "side of the square image that the model sees, in pixels", at_least=1)
    on_bad_image: Optional[OnBadImage] = setting(None, "error or skip")
    num_workers: Optional[Union[int, str]] = setting(None, "processes that read images")
    target: Optional[str] = setting(
        None, "import path of the Dataset class, for a data=dataset checkpoint: a checkpoint never names code to run"
    )


@dataclass
class EvaluateConfig:
    """`cvtrain evaluate checkpoint=PATH`: score a checkpoint on a split."""

    checkpoint: str = required("path of a checkpoint, such as runs/.../checkpoints/best.pt")
    split: Split = setting(
        Split.val, "train, val, test, or all of them together (for a folder that was not trained on)"
    )
    output_root: str = setting("runs/evaluate", "folder of all evaluations")
    batch_size: Optional[int] = setting(None, "images per batch; null: as the run had it", at_least=1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Optional[Precision] = setting(None, "fp32, bf16, fp16 or auto; null: as the run had it")
    eval_flip: Optional[bool] = setting(
        None, "the mean of the logits of each image and of its mirror image; null: as the run had it"
    )
    log_level: str = setting("INFO", "level of console and log file", choices=LOG_LEVELS)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    model: SavedModelConfig = field(default_factory=SavedModelConfig)


class Clean(str, Enum):
    all = "all"
    stale = "stale"


@dataclass
class CacheConfig:
    """`cvtrain cache [clean=all|stale]`: the caches of decoded images on disk."""

    clean: Optional[Clean] = setting(
        None, "null: list; stale: remove those that no run can use again; all: remove all. Those in use stay"
    )
    cache_dir: Optional[str] = setting(
        None, "folder of the caches, as data.cache_dir; null: cvtrain in ~/.cache or in XDG_CACHE_HOME"
    )


VERBS: Dict[str, type] = {
    "train": Config,
    "check": CheckConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "merge": MergeConfig,
    "report": ReportConfig,
    "reproduce": ReproduceConfig,
    "export": ExportConfig,
    "serve": ServeConfig,
    "cache": CacheConfig,
    "sweep": SweepConfig,
    "auto": AutoConfig,
}


# Option schemas of every group; conf/<group>/<option>.yaml names one of them as /schema/<group>/<name>.
GROUP_SCHEMAS: Dict[str, Dict[str, type]] = {
    "data": DATA_CONFIGS,
    "augment": {"augment": AugmentConfig},
    "model": MODEL_CONFIGS,
    "optimizer": OPTIMIZER_CONFIGS,
    "scheduler": SCHEDULER_CONFIGS,
    "loss": LOSS_CONFIGS,
    "logger": LOGGER_CONFIGS,
}


# Groups that a verb's config chooses options from.
VERB_GROUPS: Dict[str, Tuple[str, ...]] = {"train": tuple(GROUP_SCHEMAS), "check": ("data", "augment", "model")}


def register_schemas() -> None:
    """Put every dataclass in Hydra's ConfigStore under `/schema`, out of sight of help and option lists."""
    store = ConfigStore.instance()
    for verb, root in VERBS.items():
        store.store(group="schema", name=verb, node=root, provider="cvtrain")
    for group, schemas in GROUP_SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=node, provider="cvtrain")
