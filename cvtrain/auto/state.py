"""What a search has found so far, from which a stopped one goes on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvtrain.auto.probe import Probed
from cvtrain.config.checks.auto import STATE
from cvtrain.config.errors import ConfigError


@dataclass
class Trained:
    """A run that `cvtrain auto` made.

    Attributes:
        folder: name below `candidates/`.
        overrides: of its command, beside the search's.
        accuracy: on val, 0..1.
        num_val: val images.
        seconds: since the command began, when it ended.
        run_seconds, eval_seconds: that it took, and that its evaluations took of them.
        verdict: why it is kept, or not.
    """

    folder: str
    arch: str
    overrides: list[str]
    accuracy: float
    num_val: int
    seconds: float
    run_seconds: float
    eval_seconds: float
    verdict: str = ""


@dataclass
class State:
    """What a stopped search goes on from.

    Attributes:
        tokens: overrides that the user gave for all runs.
        settings: the search's own.
        budget: seconds.
        elapsed: seconds of commands before this one.
        probed: by architecture.
        left_out: architectures and why they were left out.
        runs: in the order in which they ended.
        best: name of the best of them.
    """

    tokens: list[str]
    settings: dict[str, Any]
    budget: float
    elapsed: float = 0.0
    probed: dict[str, Probed] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    runs: list[Trained] = field(default_factory=list)
    best: str | None = None


def load_state(folder: Path) -> State:
    """Return the state of a stopped search.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        saved = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return State(
            tokens=list(saved["overrides"]),
            settings=dict(saved["settings"]),
            budget=float(saved["budget"]),
            elapsed=float(saved["elapsed"]),
            probed={
                each["arch"]: Probed(**{**each, "overrides": tuple(each["overrides"])}) for each in saved["probed"]
            },
            left_out=dict(saved["left_out"]),
            runs=[Trained(**run) for run in saved["runs"]],
            best=saved["best"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("resume", folder, f"{STATE} is damaged: {error}", "start a new cvtrain auto") from error
