"""A typed config as plain values and back, for checkpoints and run folders."""

import dataclasses
import re
from enum import Enum
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.root import GROUP_SCHEMAS, Config
from cvtrain.config.text import first_line

# Groups whose options differ in type: the schema's name is kept beside the values.
_POLYMORPHIC = {group: schemas for group, schemas in GROUP_SCHEMAS.items() if group != "logger"}


def to_plain(value: Any) -> Any:
    """Dataclasses to dicts, enums to their values, tuples to lists: what JSON, YAML and a safe checkpoint hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys, `{"optimizer.lr": 0.1}`; an empty mapping stays a value."""
    if not isinstance(values, dict) or not values:
        return {prefix: values} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def schema_names(config: Config) -> dict[str, str]:
    """Return the schema of each group of `config`: {"data": "custom", "model": "torchvision", ...}."""
    return {
        group: next(name for name, schema in options.items() if schema is type(getattr(config, group)))
        for group, options in _POLYMORPHIC.items()
    }


def from_plain(plain: dict[str, Any], schemas: dict[str, str]) -> Config:
    """Return the typed config that `to_plain` and `schema_names` were made from.

    `${` in it is text: nothing in a saved config is an interpolation.

    Raises:
        ConfigError: a schema or a value that this version does not know.
    """
    try:
        base = OmegaConf.structured(Config)
        for group, options in _POLYMORPHIC.items():
            base[group] = OmegaConf.structured(options[schemas[group]])
        config = OmegaConf.to_object(OmegaConf.merge(base, OmegaConf.create(_escape(plain))))
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        raise ConfigError(
            rule=f"the saved config does not fit this version of cvtrain: {first_line(error)}",
            remedy="use the version that made it, named in the run folder's environment.json",
        ) from error
    assert isinstance(config, Config)
    return config


def _escape(value: Any) -> Any:
    """Return plain values with every `${` marked as text for OmegaConf."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", value)
    return value
