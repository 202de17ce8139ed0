"""Config of the verb `sweep`: which search, which engine runs it, and how. Everything else is the trials' own."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from cvtrain.config.schema.fields import required, setting


class Engine(str, Enum):
    local = "local"
    wandb = "wandb"


class Sampler(str, Enum):
    auto = "auto"
    tpe = "tpe"
    gp = "gp"


@dataclass
class SweepSettings:
    file: str = required("the search, sweep=NAME: a file's name in conf/sweep or in sweep/ of --config-dir, or a path")
    name: Optional[str] = setting(
        None,
        "name of the study and of its folder, output_root/sweeps/name; null: the name in the file, else the file's",
    )
    trials: Optional[int] = setting(
        None,
        "trials of the study in all, those of earlier starts included; null: run_cap of the file, or the whole grid",
        at_least=1,
    )
    workers: int = setting(
        1,
        "trials at the same time, each with its share of the cores and GPUs; with engine=wandb, agents to start here "
        "(0: only make the sweep)",
        at_least=0,
    )
    storage: Optional[str] = setting(
        None,
        "URL of the study's database, such as postgresql+psycopg://user@host/db, which many machines may share; "
        "null: SQLite in the study's folder",
    )
    seed: int = setting(0, "seed of a random or bayes search", at_least=0, at_most=2**32 - 1)
    sampler: Sampler = setting(
        Sampler.auto,
        "of method bayes: tpe (tree of Parzen estimators), gp (Gaussian process), or auto: gp for the first 200 trials "
        "where at least half of the parameters are numbers and no trial is ended early, else tpe",
    )
    max_initial_failures: int = setting(
        3, "the search ends with their error if that many trials fail and none before them came through", at_least=1
    )
    warm: bool = setting(
        True,
        "fork trials from a process that has the libraries loaded (Linux); else each trial loads them itself",
    )


@dataclass
class SweepConfig:
    """`cvtrain sweep sweep=NAME`: search the settings of a training command."""

    engine: Engine = setting(Engine.local, "local: on this machine, with nothing but the package; wandb: W&B's agents")
    folds: Optional[int] = setting(
        None,
        "cross-validation: each trial is a run for each fold (data.fold), and its value their mean; null: one run",
        at_least=2,
        at_most=100,
    )
    sweep: SweepSettings = field(default_factory=SweepSettings)
