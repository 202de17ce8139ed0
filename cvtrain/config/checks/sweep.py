"""Rules of the verb `sweep`. What the sweep file asks of its trials is checked in `cvtrain.sweep.checks`."""

import re
from collections.abc import Callable, Iterator

from cvtrain.config.checks.run import RUN_NAME
from cvtrain.config.errors import Problem
from cvtrain.config.machine import usable_cores
from cvtrain.config.redact import redact
from cvtrain.config.schema.sweep import Engine, SweepConfig

LOCAL_ONLY = ("storage", "seed", "sampler", "max_initial_failures", "warm")
STORAGE_URL = re.compile(r"(sqlite|postgresql|mysql|mariadb)(\+\w+)?://.+")


def workers_have_cores(config: SweepConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    workers, cores = config.sweep.workers, usable_cores()
    if workers == 0 and config.engine is Engine.local:
        yield Problem("sweep.workers", 0, "nobody would run the trials", "give at least 1; 0 is for engine=wandb")
    if workers > cores:
        rule = f"is more than this machine's cores: {cores}"
        yield Problem("sweep.workers", workers, rule, f"give each worker a core of its own: at most {cores}")


def storage_is_url(config: SweepConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    storage = config.sweep.storage
    if storage is not None and not STORAGE_URL.fullmatch(storage):
        yield Problem(
            "sweep.storage",
            redact(storage),
            "is no URL of a database",
            "sqlite:///folder/study.db, postgresql+psycopg://user:password@host/name, mysql+pymysql://...",
        )


def study_name_is_folder_name(config: SweepConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.sweep.name is not None and not RUN_NAME.fullmatch(config.sweep.name):
        rule = "is no folder name: slashes, colons and the like are not allowed, nor a dot or space at its ends"
        yield Problem("sweep.name", config.sweep.name, rule)


def settings_of_the_engine(config: SweepConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.engine is Engine.local:
        return
    if config.folds is not None:
        rule = f"has no effect with engine={config.engine.value}: its agents make one run for each trial"
        yield Problem("folds", config.folds, rule, "leave it out, or take engine=local")
    for name in LOCAL_ONLY:
        if is_set(f"sweep.{name}"):
            value = getattr(config.sweep, name)
            yield Problem(f"sweep.{name}", redact(value), f"has no effect with engine={config.engine.value}")


SWEEP_CHECKS = (workers_have_cores, storage_is_url, study_name_is_folder_name, settings_of_the_engine)
