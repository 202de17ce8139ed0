"""The `command` of a sweep file: what W&B's agent starts for each trial, and the settings that it gives all trials."""

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
    """The `key=value` words after `cvtrain` in a sweep file's command, those left out whose key is in `given`.

    With another program in the command there are none: what it does with its words is its own business.
    """
    words = [str(word) for word in content.get("command") or []]
    if PROGRAM not in words:
        return []
    named = {key_of(token) for token in given}
    settings = (word for word in words[words.index(PROGRAM) + 1 :] if "=" in word and not word.startswith("-"))
    return [_filled_in(word) for word in settings if key_of(word) not in named]


def agents_command(content: Mapping[str, Any], fixed: Sequence[str]) -> list[str]:
    """The command for W&B's agent: the file's own with `fixed` in the place of its settings of the same keys.

    Without one, `cvtrain` itself with `fixed`. The parameters come last, and `logger=wandb` is seen to.
    """
    words = [str(word) for word in content.get("command") or _default_command(content)]
    named = {key_of(token) for token in fixed}
    words = [word for word in words if "=" not in word or word.startswith("-") or key_of(word) not in named]
    added = list(fixed)
    if not any(key_of(word) == "logger" for word in (*words, *fixed)):
        added.append("logger=wandb")
    place = next((number for number, word in enumerate(words) if _brings_parameters(word)), len(words))
    if place == len(words):
        return [*words, *added, ARGUMENTS]
    return [*words[:place], *added, *words[place:]]


def _default_command(content: Mapping[str, Any]) -> list[str]:
    """That of W&B for a program of the user's own, else ours."""
    if content.get("program"):
        return ["${env}", "${interpreter}", "${program}", "${args}"]
    return ["${env}", sys.executable, "-m", PROGRAM, ARGUMENTS]


def key_of(token: str) -> str:
    """The key of an override, without what Hydra may have before it."""
    return token.lstrip("+~").partition("=")[0]


def _brings_parameters(word: str) -> bool:
    macro = MACRO.fullmatch(word)
    return macro is not None and macro[1].startswith("args")


def _filled_in(word: str) -> str:
    """As the agent does: a variable of the environment that is not set is its name."""
    return VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), word)
