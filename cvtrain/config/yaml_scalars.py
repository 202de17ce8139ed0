"""Scalars of YAML files that YAML 1.1, which the reader follows, takes for something else than what is written.

`name: 2024_01_05` is read as the number 20240105, `batch_size: 010` as 8, `12:30` as 750 and `on` as true. Each is
refused by name, since the value that the user meant is lost once the file is read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.errors import Problem, format_value
from cvtrain.config.reflection import is_text, is_text_list

_OCTAL = re.compile(r"[+-]?0[0-9_]+")


class _AsWritten(yaml.SafeLoader):
    """Merges `<<` as the reader does, and leaves each scalar as it is written."""


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return node.value


for _type in ("null", "bool", "int", "float", "timestamp"):
    _AsWritten.add_constructor(f"tag:yaml.org,2002:{_type}", _text)


def read_as_written(path: Path) -> Any:
    """Return a file's values with every scalar as text, as it is written."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_AsWritten)


def misread_problems(values: Mapping[str, Any], written: Mapping[str, Any], verb: str) -> Iterator[Problem]:
    """Yield a problem for each scalar that was read as something else than what is written.

    Args:
        values: values by dotted key, as the reader gives them.
        written: the same with every scalar as text.
        verb: name of the primary config, whose settings know which keys are text.
    """
    for key, value in values.items():
        if key in written:
            yield from _compare(key, value, written[key], wants_text=is_text(key, verb) or is_text_list(key, verb))


def misread_parameters(parameters: Any, written: Any, prefix: str = "") -> Iterator[Problem]:
    """Yield the same for the parameters of a sweep file, whose values stand below `value` and `values`."""
    if not isinstance(parameters, dict) or not isinstance(written, dict):
        return
    for name, entry in parameters.items():
        key, text = f"{prefix}{name}", written.get(str(name))
        if not isinstance(entry, dict) or not isinstance(text, dict):
            continue
        if "parameters" in entry:
            yield from misread_parameters(entry["parameters"], text.get("parameters"), f"{key}.")
        for item in ("value", "values", "min", "max"):
            if item in entry and item in text:
                wants_text = is_text(key, "train") or is_text_list(key, "train")
                for problem in _compare(key, entry[item], text[item], wants_text=wants_text):
                    yield replace(problem, key=f"parameters.{key}")


def _compare(key: str, value: Any, text: Any, *, wants_text: bool) -> Iterator[Problem]:
    if isinstance(value, dict) and isinstance(text, dict):
        for name, item in value.items():
            yield from _compare(f"{key}.{name}", item, text.get(str(name)), wants_text=False)
    elif isinstance(value, list) and isinstance(text, list):
        for item, word in zip(value, text, strict=False):
            yield from _compare(key, item, word, wants_text=wants_text)
    elif isinstance(text, str):
        yield from filter(None, [misread(key, value, text, wants_text=wants_text)])


def misread(key: str, value: Any, text: str, *, wants_text: bool) -> Problem | None:
    """Return what is wrong with a scalar that is written `text` and was read as `value`; None: nothing."""
    if value is None or isinstance(value, str) or not isinstance(value, (bool, int, float)):
        return None
    quoted = f"write it in quotes: {key.rpartition('.')[2]}: '{text}'"
    if wants_text:
        same = not isinstance(value, bool) and str(value) == text
        return None if same else Problem(key, text, f"is text, which YAML reads as {format_value(value)}", quoted)
    if isinstance(value, bool):
        if text.lower() in ("true", "false"):
            return None
        return Problem(
            key, text, f"is read as {format_value(value)}", f"write {format_value(value)}; for text {quoted}"
        )
    if ":" in text:
        rule = f"is read as {format_value(value)}, in base 60"
        return Problem(key, text, rule, f"write {format_value(value)}; for text {quoted}")
    if _OCTAL.fullmatch(text) and isinstance(value, int):
        plain = text.lstrip("+-0_") or "0"
        rule = f"is read as {value}, in base 8"
        return Problem(key, text, rule, f"write {plain} or {value}; for text {quoted}") if plain != str(value) else None
    return None
