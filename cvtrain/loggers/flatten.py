"""`flatten`: a nested config as dotted names, the same names that the command line uses."""

from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optimizer": {"lr": 0.1}}` as `{"optimizer.lr": 0.1}`.

    Flat names keep a sweep's parameter `optimizer.lr` and the config's entry the same, and a sweep's parameter
    `model` from replacing the whole group. Lists stay lists; an empty mapping stays, so that nothing is lost; enums
    and paths become strings.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, Enum):
            flat[name] = value.value
        elif isinstance(value, PurePath):
            flat[name] = str(value)
        else:
            flat[name] = value
    return flat
