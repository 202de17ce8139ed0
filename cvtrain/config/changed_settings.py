"""The settings of a saved config that are not the defaults."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import MISSING

from cvtrain.config.schema.root import GROUP_SCHEMAS, Config
from cvtrain.config.serialize import flatten, from_plain, to_plain

# Names and places, which change no figure.
PLACES = ("name", "output_root", "resume", "resume_on_changed_data", "log_level", "plots", "report")


def saved_schema(group: str, section: Mapping[str, Any]) -> type | None:
    """Return the dataclass whose values `section` holds, as config.yaml has it; None if this version has none.

    It is the one with all of its settings and the fewest others, which an earlier version did not have; of several the
    one with the same name.
    """
    names = {schema: {field.name for field in dataclasses.fields(schema)} for schema in GROUP_SCHEMAS[group].values()}
    fitting = [schema for schema, known in names.items() if section.keys() <= known]
    return min(
        fitting,
        key=lambda schema: (len(names[schema]), getattr(schema(), "name", None) != section.get("name")),
        default=None,
    )


def changed_settings(saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (value, default) of each setting, by dotted key, that differs from its dataclass's default.

    The default is None for a setting that has to be set, and for a key that this version does not know.

    Args:
        saved: the content of a run's config.yaml.
    """
    defaults = to_plain(Config())
    for group in GROUP_SCHEMAS:
        section = saved.get(group)
        if group != "logger" and isinstance(section, dict):
            schema = saved_schema(group, section)
            defaults[group] = {} if schema is None else to_plain(schema())
    known = flatten(defaults)
    changed = {}
    for key, value in flatten(dict(saved)).items():
        default = None if known.get(key) == MISSING else known.get(key)
        if value != default and key not in PLACES:
            changed[key] = (value, default)
    return changed


def restore_config(saved: dict[str, Any]) -> Config:
    """Return the typed config that config.yaml holds, which does not name the schemas of its groups.

    Raises:
        ConfigError: this version has no such settings.
    """
    schemas: dict[str, str] = {}
    for group, options in GROUP_SCHEMAS.items():
        section = saved.get(group)
        schema = saved_schema(group, section) if group != "logger" and isinstance(section, dict) else None
        schemas.update((group, name) for name, option in options.items() if option is schema)
    return from_plain(saved, schemas)
