"""Optional packages: named before torch loads and before a run folder is made."""

import importlib.util
from collections.abc import Callable, Iterator

from cvtrain.config.errors import Problem
from cvtrain.config.imports import install_remedy
from cvtrain.config.schema.data import HuggingFaceConfig
from cvtrain.config.schema.model import TimmModelConfig
from cvtrain.config.schema.root import Config


def extras_are_installed(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    wanted = (
        ("model", "timm", "timm", "timm", isinstance(config.model, TimmModelConfig)),
        ("data", "huggingface", "hf", "datasets", isinstance(config.data, HuggingFaceConfig)),
        ("logger", "mlflow", "mlflow", "mlflow", config.logger.mlflow is not None),
    )
    for key, option, extra, package, is_wanted in wanted:
        if is_wanted and importlib.util.find_spec(package) is None:
            remedy = install_remedy(extra, "mlflow-skinny" if package == "mlflow" else package)
            yield Problem(key, option, f"needs the package {package}, which is not installed", remedy)


EXTRA_CHECKS = (extras_are_installed,)
