"""The verb `list`: the options of a config group, one line each, without loading torch."""

import itertools
import re
from pathlib import Path

from cvtrain.config.composer import Composer
from cvtrain.config.errors import ConfigError
from cvtrain.config.hints import closest, did_you_mean

# What can be listed -> its config group.
KINDS = {
    "models": "model",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
    "losses": "loss",
    "augments": "augment",
    "data": "data",
    "loggers": "logger",
    "experiments": "experiment",
}


def list_options(words: list[str]) -> None:
    """Print the options of `words[0]`, by default of every kind; `words[1:]` filter names and descriptions.

    Raises:
        ConfigError: there is no such kind, or no option has the words.
    """
    if not words or words[0] in ("--help", "-h"):
        print("usage: cvtrain list KIND [words to filter by]\n")
        print("kinds:")
        for kind, group in KINDS.items():
            print(f"  {kind:<12} options of {group}=")
        return
    kind, *filters = words
    singular = {group: plural for plural, group in KINDS.items()}
    kind = singular.get(kind, kind)
    if kind not in KINDS:
        remedy = did_you_mean(f"cvtrain list {name}" for name in closest(kind, KINDS)) or f"kinds: {', '.join(KINDS)}"
        raise ConfigError(kind, rule="there is no list of these", remedy=remedy)
    rows = describe_options(KINDS[kind])
    chosen = [row for row in rows if all(word.lower() in " ".join(row).lower() for word in filters)]
    if not chosen:
        remedy = did_you_mean(closest(filters[0], [name for name, _ in rows])) or f"cvtrain list {kind} lists them all"
        raise ConfigError(" ".join(filters), rule=f"is in the name or line of none of the {kind}", remedy=remedy)
    width = max(len(name) for name, _ in chosen)
    for name, meaning in chosen:
        print(f"{name:<{width}}  {meaning}".rstrip())


def describe_options(group: str) -> list[tuple[str, str]]:
    """Return (option, first sentence of its file) for a config group."""
    composer = Composer("train")
    return [(name, _first_sentence(composer.file_of(f"{group}/{name}"))) for name in composer.options(group)]


def _first_sentence(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = [line for line in lines if "@package" not in line]
    text = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"(?<=[.:])\s+(?=[A-Z])", text)[0]
