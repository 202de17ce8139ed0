"""Removal of secrets from configs, command lines and texts before they are shown, logged or written."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"

# The last words of a key that names a secret; `num_tokens`, `tokenizer` and `keys` are none.
_SECRET_KEY = re.compile(
    r"(^|_)(api_?keys?|access_keys?|secret_keys?|private_keys?|account_keys?|encryption_keys?|passwords?|passwd|pwd|"
    r"passphrase|secrets?|tokens?|auth|authorization|bearer|credentials?|cookies?|sig|signature)$"
)
# What such a key may hold without being a secret: a switch or a count, as in class_token=true or num_tokens=197.
_HARMLESS_VALUE = re.compile(r"(true|false|null|none|yes|no|\?\?\?|[+-]?\d{1,4})?", re.IGNORECASE)

_URL_USER = re.compile(r"\b([a-z][a-z0-9+.-]*://)([^/\s?#'\"]+)@", re.IGNORECASE)
# A database's driver takes everything up to the last @ for user and password, slashes and question marks too.
_DATABASE_USER = re.compile(r"\b((?:postgresql|mysql|mariadb)(?:\+\w+)?://)[^\s'\"@]*:[^\s'\"]*@", re.IGNORECASE)
_AUTH_SCHEME = re.compile(r"\b(Bearer|Basic)(\s+)[A-Za-z0-9._~+/=-]{8,}")
# key=value, key: value, "key": "value", with the value in quotes or up to a blank, comma, bracket or ampersand.
_ASSIGNMENT = re.compile(
    r"""(?P<key>(?<![\w.-])[\w.-]+)(?P<link>["']?\s?[=:]\s?)(?P<value>"[^"]*"|'[^']*'|[^\s,;&"'\]\})]+)"""
)
_FLAG = re.compile(r"""(?P<key>(?<![\w-])--?[A-Za-z][\w-]*)(?P<link>\s+)(?P<value>"[^"]*"|'[^']*'|[^\s"'-][^\s"']*)""")
# Forms that their makers prefix, so that they are known wherever they stand.
_KNOWN_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|wandb_v\d+_\w{30,}|sk-[\w-]{20,}|sk_(?:live|test)_\w{16,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w.-]{20,}"
    r"|npm_[A-Za-z0-9]{36}|dckr_pat_[\w-]{20,}|pypi-[\w-]{50,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
)


def redact(value: Any) -> Any:
    """Return a copy of `value` in which secrets read `<redacted>`; what was given stays as it is.

    Replaced are: values of keys that name a secret (`api_key`, `token`, `password`, `secret`, `authorization`, ...;
    `sig`; any case), user and password in URLs, and tokens of known form (`hf_`, `ghp_`, AWS, JWT, ...).
    Mappings, lists and tuples are searched at any depth. In strings `KEY=value`, `key: value` and `--key value` are
    found as well, and in lists of strings the item after `--key`. A bare hexadecimal number is left alone, since a
    git revision looks like a W&B key.
    """
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, Mapping):
        return {key: _redact_item(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [
            REDACTED if position and _is_secret_flag(value[position - 1], item) else redact(item)
            for position, item in enumerate(value)
        ]
        return items if isinstance(value, list) else tuple(items)
    return value


def names_secret(key: str) -> bool:
    """True if the key's last dotted part names a secret: `logger.wandb.api_key`, `--hf-token`, `accessToken`."""
    last = key.lstrip("+~-").rsplit(".", 1)[-1]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).replace("-", "_").lower()
    return _SECRET_KEY.search(snake) is not None


def _redact_item(key: Any, item: Any) -> Any:
    if isinstance(key, str) and names_secret(key):
        if item is None or isinstance(item, bool) or _HARMLESS_VALUE.fullmatch(str(item)):
            return item
        return REDACTED
    return redact(item)


def _is_secret_flag(flag: Any, item: Any) -> bool:
    return (
        isinstance(flag, str)
        and isinstance(item, str)
        and re.fullmatch(r"--?[A-Za-z][\w-]*", flag) is not None
        and names_secret(flag)
        and not item.startswith("-")
    )


def _redact_text(text: str) -> str:
    text = _DATABASE_USER.sub(rf"\1{REDACTED}@", text)
    text = _URL_USER.sub(_redact_user, text)
    text = _AUTH_SCHEME.sub(rf"\1\2{REDACTED}", text)
    text = _redact_pairs(_ASSIGNMENT, text)
    text = _redact_pairs(_FLAG, text)
    return _KNOWN_TOKEN.sub(REDACTED, text)


def _redact_user(match: re.Match[str]) -> str:
    scheme, user = match.groups()
    # ssh://git@host names an account, not a secret; https://TOKEN@host is one.
    if ":" in user or scheme.lower().startswith("http"):
        return f"{scheme}{REDACTED}@"
    return match.group(0)


def _redact_pairs(pattern: re.Pattern[str], text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        key, link, value = match.group("key", "link", "value")
        if not names_secret(key):
            # A value can hold pairs of its own: https://host/?token=..., command='run token=...'.
            return f"{key}{link}{_redact_pairs(pattern, value)}"
        if _HARMLESS_VALUE.fullmatch(value) or value in ("Bearer", "Basic") or value.startswith(REDACTED):
            return match.group(0)
        quote = value[0] if value[0] in "\"'" else ""
        return f"{key}{link}{quote}{REDACTED}{quote}"

    return pattern.sub(replace, text)
