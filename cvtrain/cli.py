"""The command line: `cvtrain [verb] key=value ...`. Composes and checks the config, then hands over to the verb."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.config.errors import ConfigError


def run_train(config: Any, run_dir: Path, overrides: list[str]) -> float:
    from cvtrain.train import train

    return train(config, run_dir=run_dir, overrides=overrides).monitor


def run_evaluate(config: Any, run_dir: Path, overrides: list[str]) -> float:
    from cvtrain.evaluate import evaluate

    return evaluate(config, run_dir=run_dir).monitor


VERBS = {"train": run_train, "evaluate": run_evaluate}


def run(arguments: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf
    from datetime import datetime

    from cvtrain.config.location import conf_dir
    from cvtrain.config.root import register_schemas

    register_schemas()

    def new_run_dir(root: str, name: str) -> str:
        stem = Path(root) / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(1, 1000):
            folder = stem if attempt == 1 else stem.with_name(f"{stem.name}_{attempt}")
            try:
                folder.mkdir(parents=True)
                return str(folder)
            except FileExistsError:
                continue
        raise AssertionError

    OmegaConf.register_new_resolver("new_run_dir", new_run_dir, use_cache=True, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    verb = "train"
    if arguments and arguments[0] in VERBS:
        verb, arguments = arguments[0], arguments[1:]
    sys.argv = [sys.argv[0], *arguments]

    @hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")
    def task(cfg: DictConfig) -> float:
        hydra_config = HydraConfig.get()
        return VERBS[verb](
            OmegaConf.to_object(cfg), Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
        )

    try:
        task()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
