"""Overrides in Hydra's grammar: small liberties taken before Hydra reads a command, and values written for it."""

import re
from typing import Any

from cvtrain.config.reflection import open_keys

# Groups whose option may be none at all, and what Hydra calls that.
NULL_CHOICES = {"experiment": "~experiment", "debug": "~debug", "logger": "logger=[]"}
# Texts that need no quotes, and those among them that Hydra reads as something else.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED = {"null", "true", "false", "inf", "nan"}


def normalize_override(token: str, verb: str) -> str:
    """The token as Hydra wants it.

    `model.kwargs.depth=2` gets the `++` that adds a key to an open mapping: a user knows their class's arguments, and
    should not need to know which mapping is open. `logger=null` becomes the empty choice, which Hydra spells by group.
    """
    key, equals, value = token.partition("=")
    if equals and value in ("null", "None") and key in NULL_CHOICES:
        return NULL_CHOICES[key]
    for name in open_keys(verb):
        if equals and (key.startswith(f"{name}.") or (key == name and value.startswith("{"))):
            return f"++{token}"
    return token


def override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar, which parses back to the same value.

    Texts that would read as something else (numbers, null, anything with spaces, commas, quotes, ...) are quoted.

    Args:
        key: a config group or a dotted key.
        value: None, a bool, a number, a text, or a list or mapping of these.

    Raises:
        ValueError: a value of another kind, or a mapping's key that Hydra's grammar has no way to write.
    """
    return f"{key}={value_text(value)}"


def value_text(value: Any) -> str:
    """A value as Hydra's grammar writes it: `null`, `1e-05`, `[a,'b c']`, `{depth:2}`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED else _quoted(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(value_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_mapping_key(name)}:{value_text(item)}" for name, item in value.items()) + "}"
    raise ValueError(f"{value!r} is no value of a config: a text, a number, true, false, null, or a list or mapping")


def _quoted(text: str) -> str:
    # Backslashes count only before a quote, and at the end, where the closing quote comes.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)\Z", lambda match: match[1] * 2, escaped) + "'"


def _mapping_key(name: Any) -> str:
    if isinstance(name, str) and _PLAIN.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    raise ValueError(f"{name!r} cannot be a key in {{key:value}}: letters, digits, _ . / and - after a letter or _")


def repeated(words: list[str]) -> dict[str, str]:
    """The word that counts, the last one, for each key that a command gives more than once."""
    by_key: dict[str, list[str]] = {}
    for word in words:
        key, equals, _ = word.partition("=")
        if equals:
            by_key.setdefault(key.lstrip("+"), []).append(word)
    return {key: given[-1] for key, given in by_key.items() if len(given) > 1}
