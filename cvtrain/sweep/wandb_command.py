"""The `command` of a sweep file, which W&B's agent runs for each trial, and its settings for all trials."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PROGRAM = "cvtrain"
MACRO = re.compile(r"\$\{(\w+)\}")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
ARGUMENTS = "${args_no_hyphens}"


def settings_of_command(content: Mapping[str, Any], given: Sequence[str] = ()) -> list[str]:
    """Return the `key=value` words after `cvtrain` in a sweep file's command, without keys in `given`.

    A command with another program has none.
    """
    words = [str(word) for word in content.get("command") or []]
    if PROGRAM not in words:
        return []
    named = {key_of(token) for token in given}
    settings = (word for word in words[words.index(PROGRAM) + 1 :] if "=" in word and not word.startswith("-"))
    return [_expand(word) for word in settings if key_of(word) not in named]


def agents_command(content: Mapping[str, Any], fixed: Sequence[str]) -> list[str]:
    """Return the command for W&B's agent: the file's own, with `fixed` instead of its settings of the same keys.

    Without one it is `cvtrain` with `fixed`. The parameters come last, and `logger=wandb` is added if missing.
    """
    words = [str(word) for word in content.get("command") or _default_command(content)]
    named = {key_of(token) for token in fixed}
    words = [word for word in words if "=" not in word or word.startswith("-") or key_of(word) not in named]
    added = list(fixed)
    if not any(key_of(word) == "logger" for word in (*words, *fixed)):
        added.append("logger=wandb")
    place = next((number for number, word in enumerate(words) if _has_parameters(word)), len(words))
    if place == len(words):
        return [*words, *added, ARGUMENTS]
    return [*words[:place], *added, *words[place:]]


def _default_command(content: Mapping[str, Any]) -> list[str]:
    """Return W&B's default for a program of the user's own, else cvtrain."""
    if content.get("program"):
        return ["${env}", "${interpreter}", "${program}", "${args}"]
    return ["${env}", sys.executable, "-m", PROGRAM, ARGUMENTS]


def key_of(token: str) -> str:
    """Return the key of an override, without Hydra's prefixes."""
    return token.lstrip("+~").partition("=")[0]


def _has_parameters(word: str) -> bool:
    macro = MACRO.fullmatch(word)
    return macro is not None and macro[1].startswith("args")


def _expand(word: str) -> str:
    """Insert environment variables as the agent does; one that is not set becomes its name."""
    return VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word)
