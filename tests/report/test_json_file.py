"""summary.json and environment.json."""

import json
import math
import subprocess
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

import cvtrain
from cvtrain.config.redact import REDACTED
from cvtrain.report.environment import describe_environment, describe_git, write_environment
from cvtrain.report.json_file import write_json


class Color(str, Enum):
    red = "red"


def test_json_of_everything_that_a_run_holds(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "inf": [math.inf, -math.inf, 0.1],
        "numpy": [np.float32(0.5), np.int64(3), np.array([[1.0, np.nan]]), np.bool_(True)],
        "tensor": torch.tensor([1.5]),
        "enum": Color.red,
        "path": Path("a") / "b",
        "set": {3, 1},
        "tuple": (1, None, True),
        3: "é",
    }
    write_json(tmp_path / "summary.json", value)
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "é" in text and text.endswith("}\n")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, None, 0.1],
        "numpy": [0.5, 3, [[1.0, None]], True],
        "tensor": [1.5],
        "enum": "red",
        "path": str(Path("a") / "b"),
        "set": [1, 3],
        "tuple": [1, None, True],
        "3": "é",
    }


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="a complex cannot be written as JSON"):
        write_json(path, {"a": 1j})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_environment(tmp_path: Path) -> None:
    write_environment(tmp_path / "environment.json", argv=["cvtrain", "model=mlp", "data.kwargs.token=abc-d"])
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["command"] == ["cvtrain", "model=mlp", f"data.kwargs.token={REDACTED}"]
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["numpy"] == np.__version__
    assert set(found) == {"started", "command", "folder", "git", "versions", "machine", "devices"}
    assert found["machine"]["cores"] >= found["machine"]["usable_cores"] >= 1
    assert found["machine"]["memory_gib"] > 0.1
    assert cvtrain.__name__ in found["versions"]


def test_git(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert describe_git(tmp_path) is None
    git("init", "-q")
    assert describe_git(tmp_path) is None
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    revision = git("rev-parse", "HEAD")
    (tmp_path / "untracked.txt").write_text("1")
    assert describe_git(tmp_path) == {"revision": revision, "branch": "main", "dirty": False}
    (tmp_path / "a.txt").write_text("2")
    assert describe_git(tmp_path) == {"revision": revision, "branch": "main", "dirty": True}


def test_without_git_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert describe_environment(argv=[])["git"] is None
