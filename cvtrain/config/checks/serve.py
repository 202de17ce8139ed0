"""Rules of `serve` that need not the checkpoint's content."""

import importlib.util
from collections.abc import Callable, Iterator

from cvtrain.config.checks.run import checkpoint_exists, device_problem, precision_problem
from cvtrain.config.errors import Problem
from cvtrain.config.imports import install_remedy
from cvtrain.config.schema.serve import ServeConfig

# Packages of the extra `serve`, by the name that they are imported under.
PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def packages_are_installed(config: ServeConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        rule = f"needs {', '.join(PACKAGES.values())}; not installed: {', '.join(missing)}"
        yield Problem("serve", rule=rule, remedy=install_remedy("serve", " ".join(missing)))


def device_is_possible(config: ServeConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    yield from device_problem("device", config.device)
    yield from precision_problem("", config.device, config.precision)


def memory_has_room(config: ServeConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.memory_mb < config.max_mb:
        rule = f"is less than max_mb={config.max_mb:g}, so that the largest image would never be taken"
        yield Problem("memory_mb", config.memory_mb, rule)


SERVE_CHECKS = (packages_are_installed, checkpoint_exists, device_is_possible, memory_has_room)
