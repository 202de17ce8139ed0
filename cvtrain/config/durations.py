"""Spans of time as people write them: 90s, 10m, 1.5h."""

import re

from cvtrain.config.errors import ConfigError

_UNITS = {"": 60.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_duration(text: str, key: str) -> float:
    """Return the seconds of `90s`, `10m` (also `10`), `1.5h`.

    Raises:
        ConfigError: it is none of these.
    """
    match = _SPAN.fullmatch(text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(key, text, "is no span of time", f"write {key}=90s, {key}=10m or {key}=1.5h")
    return float(match[1]) * _UNITS[match[2]]
