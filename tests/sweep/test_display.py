"""The live table of a search: how it fits terminals, and what it leaves out where it does not."""

import io
import os
import subprocess
import sys

import optuna
import pytest
from rich.console import Console

from cvtrain.sweep import display
from cvtrain.sweep.display import build_display, columns_for, duration, short_names
from cvtrain.sweep.spec import load_spec
from cvtrain.sweep.trial import RunningTrial

FILE = """
method: grid
metric: {name: val/accuracy, goal: maximize}
parameters:
  optimizer.lr: {values: [0.1, 0.2, 0.3]}
  model.hidden: {values: [[64, 32, 16, 32, 64], [64]]}
  name: {value: the same for all}
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Lines of the table of 20 ended trials and two running ones in a terminal of some size."""
    (tmp_path / "show.yaml").write_text(FILE)
    study = optuna.create_study(direction="maximize")
    for number in range(20):
        trial = study.ask()
        values = {"optimizer.lr": 0.1, "model.hidden": [64, 32, 16, 32, 64], "name": "the same for all"}
        trial.set_user_attr("run", {"values": values})
        study.tell(trial, 0.9 if number == 3 else 0.5)
    running = [
        RunningTrial(None, number, {"optimizer.lr": 0.25, "model.hidden": [64]}, tmp_path) for number in (20, 21)
    ]

    def draw(width, height):
        file = io.StringIO()
        console = Console(file=file, width=width, height=height, force_terminal=True, color_system=None)
        monkeypatch.setattr(display, "get_console", lambda: console)
        table = build_display("show", load_spec(tmp_path / "show.yaml"), 30)
        table.update(running, study.get_trials())
        lines = file.getvalue().splitlines()
        table.close()
        return [line.rstrip() for line in lines if line.strip()]

    return draw


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 15), (40, 24)])
def test_the_table_fits_and_shows_what_runs_and_the_best(drawn, width, height):
    lines = drawn(width, height)
    assert len(lines) <= height - 4 and max(len(line) for line in lines) <= width
    rows = [line.split() for line in lines[3:]]
    assert [row[:2] for row in rows[-2:]] == [["20", "running"], ["21", "running"]]
    assert rows[0][:3] == ["3", "done", "0.9000"]
    assert "20 of 30 trials, 2 running" in lines[0]


def test_a_wide_table_names_what_differs_from_trial_to_trial(drawn):
    text = "\n".join(drawn(120, 40))
    assert "lr=0.1 hidden=[64,32,16,32,64]" in text and "the same for all" not in text
    assert "parameters" not in "\n".join(drawn(40, 24)) and "…" not in "\n".join(drawn(40, 24))


def test_columns_of_narrow_terminals():
    widths = {"trial": 5, "state": 7, "metric": 12, "best": 6, "time": 5, "parameters": 50}
    assert columns_for(200, widths) == ["trial", "state", "metric", "best", "time", "parameters"]
    assert columns_for(60, widths) == ["trial", "state", "metric", "best", "parameters"]
    assert columns_for(50, widths) == ["trial", "state", "metric", "parameters"]
    assert columns_for(40, widths) == ["trial", "state", "metric", "best"]
    assert columns_for(20, widths) == ["trial", "state", "metric"]


def test_names_are_short_where_they_stay_different():
    assert short_names(["optimizer.lr", "model.hidden", "seed"]) == {
        "optimizer.lr": "lr",
        "model.hidden": "hidden",
        "seed": "seed",
    }
    assert short_names(["a.x", "b.x"]) == {"a.x": "a.x", "b.x": "b.x"}
    assert [duration(seconds) for seconds in (0, 59.9, 725, 12015)] == ["0 s", "59 s", "12:05", "3:20:15"]


def test_a_console_without_unicode_shows_what_it_can():
    code = (
        "import logging\n"
        "from cvtrain.runtime.console import ConsoleHandler\n"
        "logging.getLogger().addHandler(ConsoleHandler())\n"
        "logging.getLogger().warning('name=\\u00fcn\\u2713')\n"
        "logging.getLogger().warning('next line')\n"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=120)
    assert done.stdout.decode("ascii").splitlines() == ["name=\\xfcn\\u2713", "next line"] and not done.stderr
