"""A trial of a W&B sweep: the parameters that the agent has started this process with.

`wandb agent` hands a trial's parameters over twice: on the command line, as Python prints them and without quotes, and
in a YAML file, exactly. This reads the file, and writes the command line anew as Hydra reads it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.errors import ConfigError
from cvtrain.config.overrides import override
from cvtrain.config.reflection import is_text

SWEEP_ID, RUN_ID, PARAMETERS_PATH = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
# Entry of a trial's W&B config that lists the parameters of the sweep. When a preempted trial resumes, the
# server sends the whole config as if all of it were parameters.
CHOSEN = "sweep_parameters"
# What the client itself puts into a config.
CLIENTS_OWN = ("_wandb", "wandb_version", CHOSEN)

EXPONENT_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep; `parameters` by name, with the values as the sweep has them."""

    sweep_id: str
    run_id: str
    parameters: dict[str, Any]

    @property
    def overrides(self) -> list[str]:
        """The parameters as Hydra's overrides. A nested one becomes several: `optimizer: {lr: 1}` sets optimizer.lr.

        Raises:
            ConfigError: a value that has no place in a config.
        """
        tokens = []
        for key, value in _leaves(self.parameters):
            try:
                tokens.append(override(key, value if is_text(key, "train") and value != "null" else _coerce(value)))
            except ValueError as error:
                raise ConfigError(f"parameter {key} of sweep {self.sweep_id}", value, str(error)) from error
        return tokens


def is_trial() -> bool:
    """True in a process that an agent of W&B has started."""
    return bool(os.environ.get(SWEEP_ID) and os.environ.get(RUN_ID))


def current_trial() -> Trial | None:
    """The trial that this process is, by its environment; None: it is none.

    Raises:
        ConfigError: the file of parameters cannot be read.
    """
    path = os.environ.get(PARAMETERS_PATH)
    if not is_trial() or not path:
        return None
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        values = {name: entry["value"] for name, entry in content.items() if name not in CLIENTS_OWN[:2]}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise ConfigError(
            key=PARAMETERS_PATH,
            value=path,
            rule=f"the sweep's parameters cannot be read: {error!r}",
            remedy=f"let `wandb agent` start the run; to run without a sweep: unset {SWEEP_ID} {PARAMETERS_PATH}",
        ) from error
    chosen = values.pop(CHOSEN, None)
    if isinstance(chosen, list):
        values = {name: value for name, value in values.items() if name in chosen}
    return Trial(os.environ[SWEEP_ID], os.environ[RUN_ID], values)


def with_parameters(arguments: Sequence[str], trial: Trial) -> list[str]:
    """The command line of a trial with its parameters as Hydra's overrides, in the place of what the agent wrote.

    Whichever macro of the sweep's `command` brought them (`${args}`, `${args_no_hyphens}`, `${args_append_hydra}`,
    `${args_json_file}`, ...), or none did: a parameter of the sweep always reaches the run.
    """
    written = _AgentArguments(trial)
    kept: list[str] = []
    place = None
    position = 0
    while position < len(arguments):
        count = written.count_at(arguments, position)
        if count:
            place = len(kept) if place is None else place
            position += count
        else:
            kept.append(arguments[position])
            position += 1
    place = len(kept) if place is None else place
    return [*kept[:place], *trial.overrides, *kept[place:]]


def trial_folder(root: str, name: str) -> Path | None:
    """The run folder of the trial that this process is, the same each time it is started; None: it is none."""
    if not is_trial():
        return None
    return Path(root).expanduser() / name / f"sweep_{os.environ[SWEEP_ID]}" / os.environ[RUN_ID]


class _AgentArguments:
    """Recognises what an agent's macros put on the command line."""

    def __init__(self, trial: Trial) -> None:
        path = os.environ.get(PARAMETERS_PATH, "")
        # As the agent has them: with the entries of a whole config that are no parameters.
        self.values = _read_values(path)
        self.words = {str(Path(path).with_suffix(".json")), *trial.overrides}
        self.pairs = set()
        for key, value in self.values.items():
            self.words |= {f"{prefix}{key}={value}" for prefix in ("", "--", "+", "++")}
            self.pairs.add((f"--{key}", str(value)))
            if value is True:
                self.words.add(f"--{key}")

    def count_at(self, arguments: Sequence[str], position: int) -> int:
        """Return the number of arguments from `position` on that the agent wrote as one; 0: it is not the agent's."""
        if tuple(arguments[position : position + 2]) in self.pairs:
            return 2
        word = arguments[position]
        return 1 if word in self.words or self._is_json(word) else 0

    def _is_json(self, word: str) -> bool:
        if not word.startswith("{") or not word.endswith("}"):
            return False
        try:
            return bool(json.loads(word) == json.loads(json.dumps(self.values)))
        except ValueError:
            return False


def _read_values(path: str) -> dict[str, Any]:
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    return {name: entry["value"] for name, entry in content.items() if name != "wandb_version"}


def _coerce(value: Any) -> Any:
    """The number or null that a text means: to W&B's reader of YAML `1e-5` is text, and `"null"` is common there."""
    if isinstance(value, list):
        return [_coerce(item) for item in value]
    if isinstance(value, dict):
        return {name: _coerce(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if value == "null":
        return None
    return float(value) if EXPONENT_NUMBER.fullmatch(value) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
