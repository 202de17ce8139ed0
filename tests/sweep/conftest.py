"""Searches whose trials are stand-ins: what the engine does with them is real, and takes no time."""

import csv
import json

import fake_trials
import pytest
import yaml


@pytest.fixture
def search(cvtrain, tmp_path, monkeypatch):
    """`search(parameters, "sweep.trials=3", method="grid", ...)` runs a search and gives what it answered."""
    for name in ("run_trial", "count_gpus"):
        monkeypatch.setattr(f"cvtrain.sweep.workers.{name}", getattr(fake_trials, name))
    monkeypatch.setattr("cvtrain.sweep.workers.PRELOADED", ("pytest", "fake_trials"))
    monkeypatch.setattr("cvtrain.sweep.report.plot_search", lambda *arguments: [])

    def run(parameters, *arguments, **content):
        content = {
            "method": "grid",
            "metric": {"name": "val/accuracy", "goal": "maximize"},
            "parameters": parameters,
            **content,
        }
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return cvtrain("sweep", "sweep=search.yaml", *arguments)

    return run


@pytest.fixture
def table(tmp_path):
    """The rows of a search's trials.csv."""

    def read(name="search"):
        path = tmp_path / "runs" / "sweeps" / name / "sweep_report" / "trials.csv"
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture
def starts(tmp_path):
    """The settings with which a trial was started, each time."""

    def read(number, name="search"):
        path = tmp_path / "runs" / "sweeps" / name / "trials" / f"{number:04d}" / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read
