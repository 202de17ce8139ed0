"""Config-driven training of image classifiers. `import cvtrain` loads no torch: names are imported when used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvtrain.classifier import Classifier, Prediction
    from cvtrain.commands.from_python import build_loaders, build_model, evaluate, train
    from cvtrain.commands.load import load
    from cvtrain.config.compose import compose
    from cvtrain.config.errors import ConfigError
    from cvtrain.config.schema.root import Config
    from cvtrain.data.sources.build import build_splits

__version__ = "0.1.0"

_MODULES = {
    "Classifier": "cvtrain.classifier",
    "Config": "cvtrain.config.schema.root",
    "ConfigError": "cvtrain.config.errors",
    "Prediction": "cvtrain.classifier",
    "build_loaders": "cvtrain.commands.from_python",
    "build_model": "cvtrain.commands.from_python",
    "build_splits": "cvtrain.data.sources.build",
    "compose": "cvtrain.config.compose",
    "evaluate": "cvtrain.commands.from_python",
    "load": "cvtrain.commands.load",
    "train": "cvtrain.commands.from_python",
}
__all__ = [
    "Classifier",
    "Config",
    "ConfigError",
    "Prediction",
    "__version__",
    "build_loaders",
    "build_model",
    "build_splits",
    "compose",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cvtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
