"""summary.json and its like: written whole or not at all, and read."""

import json
import math
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from cvtrain.config.redact import redact
from cvtrain.runtime.files import atomic_write


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` without its secrets as indented UTF-8 JSON, atomically.

    Numbers that are not finite become null, which every JSON reader takes. Beside JSON's own types: mappings with any
    keys, tuples, sets (sorted), enums, paths, arrays and tensors (as lists), and NumPy's numbers.

    Raises:
        TypeError: `value` holds something else; names its type.
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    text = json.dumps(redact(_json_ready(value)), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a file holds; an empty one if it is missing or damaged, as of a run that failed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _json_ready(value: Any) -> Any:
    if isinstance(value, Enum):
        return _json_ready(value.value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_json_ready(key)): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_json_ready(item) for item in sorted(value)]
    if isinstance(value, PurePath):
        return str(value)
    # NumPy's scalars and arrays, and tensors, without importing either.
    if hasattr(value, "tolist"):
        return _json_ready(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r}")
