"""`cvtrain sweep engine=wandb`: what it makes on the server, its agents, and everything that it refuses first."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from wandb_programs import BIN, QUICK, Programs, spec_of, wait_for
from wandb_sweep_server import WandbSweepServer

from cvtrain.sweep import wandb_engine
from cvtrain.sweep.wandb_command import agents_command, settings_of_command

pytestmark = pytest.mark.timeout(900)
CVTRAIN = [str(BIN / "python"), "-m", "cvtrain", "sweep", "engine=wandb"]


@pytest.fixture
def server() -> Iterator[WandbSweepServer]:
    with closing(WandbSweepServer()) as running:
        yield running


def write(folder: Path, spec: dict[str, Any]) -> str:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return f"sweep={path}"


def test_it_makes_the_sweep_and_runs_its_trials(server, tmp_path):
    programs = Programs(tmp_path, server, COLUMNS="200")
    spec = spec_of({"seed": {"values": [1, 2, 3]}}, "trainer.epochs=3")
    search = write(tmp_path, spec)
    done = programs.run([*CVTRAIN, search, "sweep.trials=1", "trainer.epochs=1", "sweep.name=mine"], timeout=300)
    assert done.returncode == 0, done.stdout
    (sweep,) = server.sweeps.values()
    assert "agents, here or on other machines: wandb agent tester/sp/sweep1" in done.stdout
    assert (sweep.config["name"], sweep.config["run_cap"], sweep.project) == ("mine", 1, "sp")
    assert sweep.config["command"][:4] == ["${env}", "python", "-m", "cvtrain"]
    assert sweep.config["command"][-1] == "${args_no_hyphens}"
    assert sorted(sweep.config["command"][4:-1]) == sorted([*QUICK, "trainer.epochs=1", "trainer.monitor=val/loss"])
    assert sweep.config["parameters"] == spec["parameters"]
    assert server.states() == {"sweep1run1": "finished"}
    assert len([row for row in server.runs["sweep1run1"].history if "val/loss" in row]) == 1
    kept = yaml.safe_load((tmp_path / "runs" / "sweeps" / "mine" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert kept == sweep.config


def test_a_search_over_a_required_setting(server, tmp_path):
    for root in ("photos a", "b"):
        for number, name in enumerate(("ants", "bees")):
            (tmp_path / root / name).mkdir(parents=True)
            for image in range(12):
                Image.new("RGB", (16, 16), (100 * number, 10 * image, 0)).save(tmp_path / root / name / f"{image}.png")
    programs = Programs(tmp_path, server, COLUMNS="200")
    spec = spec_of({"data.root": {"values": ["photos a", "b"]}}, "data=custom", "data.image_size=16", "model=mlp")
    done = programs.run([*CVTRAIN, write(tmp_path, spec)], timeout=600)
    assert done.returncode == 0, done.stdout
    assert server.states() == {"sweep1run1": "finished", "sweep1run2": "finished"}, done.stdout
    assert [server.runs[f"sweep1run{n}"].config["data.root"] for n in (1, 2)] == ["photos a", "b"]


@pytest.mark.slow
def test_ctrl_c_ends_the_agents_and_their_trials_with_checkpoints(server, tmp_path):
    programs = Programs(tmp_path, server)
    endless = ("trainer.epochs=1000000", "trainer.log_every_steps=1000")
    search = write(tmp_path, spec_of({"seed": {"values": [1, 2, 3]}}, *endless))
    searching = programs.said([*CVTRAIN, search, "sweep.workers=2"])
    wait_for(lambda: len([run for run in server.runs.values() if run.history]) == 2)
    searching.process.send_signal(signal.SIGINT)
    output = searching.end(120)
    assert searching.process.returncode == 130, output
    assert server.states() == {"sweep1run1": "preempted", "sweep1run2": "preempted"}
    assert len(list((tmp_path / "runs" / "digits_mlp" / "sweep_sweep1").glob("*/checkpoints/last.pt"))) == 2


def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


REFUSED: dict[str, tuple[dict[str, Any], list[str], dict[str, str | None], str]] = {
    "no key": ({}, [], {"WANDB_API_KEY": None}, "error: engine=wandb: no API key for http"),
    "a key of the wrong form": ({}, [], {"WANDB_API_KEY": "x"}, "error: engine=wandb: the API key cannot be used"),
    "no server": ({}, [], {"WANDB_BASE_URL": nowhere()}, "cannot be reached"),
    "offline": ({}, [], {"WANDB_MODE": "offline"}, "error: WANDB_MODE=offline: engine=wandb needs its server"),
    "entity": ({"entity": "nobody"}, [], {}, "W&B's server did not take it: "),
    "parameter": ({"parameters": {"optimzer.lr": {"value": 1}}}, [], {}, "did you mean optimizer.lr?"),
    "value": ({"parameters": {"optimizer.lr": {"value": -1}}}, [], {}, "optimizer.lr=-1: must be a number above 0"),
    "metric": ({"metric": {"name": "val/acc"}}, [], {}, "did you mean val/accuracy?"),
    "test metric": (
        {"metric": {"name": "test/accuracy", "goal": "maximize"}}, [], {}, "test/accuracy: cannot be used for selection"
    ),
    "logger": ({}, ["logger=csv"], {}, "error: logger=csv: the server would wait for the trials' figures"),
    "median": (
        {"early_terminate": {"type": "median"}}, [], {}, "early_terminate.type=median: is understood by engine=local"
    ),
    "no effect": ({}, ["sweep.storage=sqlite:///a.db"], {}, "has no effect with engine=wandb"),
}  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("no key", "no server", "entity", "median"),
        pytest.param(tuple(REFUSED), marks=pytest.mark.slow, id="all"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(server, tmp_path, names):
    started = {}
    for number, name in enumerate(names):
        keys, tokens, variables, _ = REFUSED[name]
        folder = tmp_path / str(number)
        folder.mkdir()
        programs = Programs(folder, server)
        programs.environment |= {key: value for key, value in variables.items() if value is not None}
        for key, value in variables.items():
            if value is None:
                del programs.environment[key]
        search = write(folder, spec_of({"seed": {"value": 1}}) | keys)
        started[name] = (programs.said([*CVTRAIN, search, *tokens]), time.monotonic())
    for name, (program, _) in started.items():
        output = program.end(120)
        assert program.process.returncode == 2, (name, output)
        assert REFUSED[name][-1] in output, name
        assert "Traceback" not in output
    assert (server.sweeps, server.runs) == ({}, {})


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        programs = Programs(tmp_path, WANDB_BASE_URL=url)
        began = time.monotonic()
        done = programs.run([*CVTRAIN, write(tmp_path, spec_of({"seed": {"value": 1}}))])
    assert (done.returncode, time.monotonic() - began < 90) == (2, True)
    assert "error: engine=wandb: W&B's server does not answer" in done.stdout


def test_the_commands_settings_are_those_of_every_trial(monkeypatch):
    monkeypatch.setenv("PHOTOS", "/data/photos")
    command = ["${env}", "python", "-m", "cvtrain", "data.root=${envvar:PHOTOS}", "logger=[csv,wandb]", "${args}"]
    content = {"command": command}
    assert settings_of_command(content) == ["data.root=/data/photos", "logger=[csv,wandb]"]
    assert settings_of_command(content, ["++data.root=x"]) == ["logger=[csv,wandb]"]
    assert settings_of_command({"command": ["python", "train.py", "a=1"]}) == []
    assert agents_command(content, ["data.root=x"]) == [
        "${env}", "python", "-m", "cvtrain", "logger=[csv,wandb]", "data.root=x", "${args}"
    ]  # fmt: skip
    assert agents_command({}, ["seed=1"])[2:] == ["-m", "cvtrain", "seed=1", "logger=wandb", "${args_no_hyphens}"]
    assert agents_command({"program": "mine.py"}, [])[-3:] == ["${program}", "logger=wandb", "${args}"]


def test_a_signal_while_agents_are_started_is_not_lost(monkeypatch):
    started = []

    def start(*arguments, **options):
        started.append(arguments)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return popen(*arguments, **options)

    popen = wandb_engine.subprocess.Popen
    monkeypatch.setattr(wandb_engine, "WANDB", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(wandb_engine.subprocess, "Popen", start)
    begun = time.monotonic()
    assert wandb_engine.run_agents("e/p/s", 3) == 143
    assert len(started) == 2 and time.monotonic() - begun < 30
