"""`seeds=N` and `folds=K`: one command, several runs that differ in the seed or in the fold that is val."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cvtrain.config.errors import ConfigError
from cvtrain.config.overrides import unquoted

# What a word repeats, and the setting in which its runs differ.
SETTINGS = {"seeds": "seed", "folds": "data.fold"}
MOST_RUNS = 100


@dataclass(frozen=True)
class Repeats:
    """A command that is repeated.

    Attributes:
        word: `seeds` or `folds`.
        count: number of runs.
    """

    word: str
    count: int

    @property
    def setting(self) -> str:
        """Setting in which the runs differ."""
        return SETTINGS[self.word]

    def values(self, first_seed: int) -> list[str]:
        """Return the value of the setting in each run, in Hydra's grammar."""
        if self.word == "seeds":
            return [str(first_seed + number) for number in range(self.count)]
        return [f"'{number}/{self.count}'" for number in range(self.count)]


def take_repeats(tokens: Sequence[str]) -> tuple[Repeats | None, list[str]]:
    """Return what `seeds=N` or `folds=K` among the tokens of a command says, and the other tokens.

    Raises:
        ConfigError: the number is none, both are given, or the setting in which the runs differ is given, too.
    """
    found: Repeats | None = None
    others = []
    for token in tokens:
        key, equals, value = token.partition("=")
        if key not in SETTINGS or not equals or value == "null":
            others.append(token)
            continue
        value = unquoted(value)
        if not re.fullmatch(r"\d{1,9}", value) or not 2 <= int(value) <= MOST_RUNS:
            rule = f"must be a whole number of runs, 2 to {MOST_RUNS}"
            raise ConfigError(key, value, rule, f"such as {key}=5")
        if found is not None and found.word != key:
            rule = f"cannot be had together with {found.word}={found.count}"
            raise ConfigError(
                key, value, rule, "repeat over one of the two, and choose the other by seed=... or data.fold=..."
            )
        found = Repeats(key, int(value))
    clash = found and next((token for token in others if token.lstrip("+").startswith(f"{found.setting}=")), None)
    if found and clash and (found.word == "folds" or not re.fullmatch(r"\+*seed=\d+", clash)):
        rule = f"cannot be had together with {clash}, which says the same in another way"
        raise ConfigError(found.word, found.count, rule, "leave one of the two out")
    return found, others


def expand_repeats(repeats: Repeats, tokens: Sequence[str], first_seed: Callable[[], int]) -> list[str]:
    """Return the tokens of a --multirun that makes the runs.

    Args:
        first_seed: finds the seed of the command; the others follow it.
    """
    is_seeds = repeats.word == "seeds"
    values = ",".join(repeats.values(first_seed() if is_seeds else 0))
    kept = [token for token in tokens if not (is_seeds and token.lstrip("+").startswith("seed="))]
    return [*kept, f"{repeats.setting}={values}"]
