"""Dotted names, the same as on the command line."""

from enum import Enum
from pathlib import Path

from cvtrain.loggers.flatten import flatten


class Mode(str, Enum):
    fast = "fast"


def test_flatten() -> None:
    nested = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "model": {"kwargs": {}, "mode": Mode.fast}, "x": None,
              "root": Path("a")}  # fmt: skip
    flat = flatten(nested)
    assert flat == {
        "optimizer.lr": 0.1,
        "optimizer.betas": [0.9, 0.99],
        "model.kwargs": {},
        "model.mode": "fast",
        "x": None,
        "root": "a",
    }
    assert type(flat["model.mode"]) is str
