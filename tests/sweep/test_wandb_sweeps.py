"""Sweeps by W&B's own programs, `wandb sweep` and `wandb agent`: what the server was told, and what runs left."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_programs import BIN, Programs, Said, spec_of, wait_for
from wandb_sweep_server import Sweep, WandbSweepServer

# Every kind of value that a parameter can have. The agent writes them without quotes, null as None.
VALUES: dict[str, Any] = {
    "optimizer.lr": 1e-05,
    "seed": 7,
    "trainer.deterministic": True,
    "augment.preview": False,
    "trainer.clip_grad_norm": None,
    "model.hidden": [8, 6],
    "model.dropout": 0.25,
    "logger.wandb.notes": "two words, a comma = 'more' (of it)",
    "logger.wandb.tags": ["a b", "c"],
    "augment.transforms": [{"RandomRotation": {"degrees": 10}}],
}
# Five trials of seconds each, on a machine that is busy with others.
pytestmark = pytest.mark.timeout(900)
# A run that lasts until it is stopped.
ENDLESS = ("trainer.epochs=1000000", "trainer.log_every_steps=1000")


@pytest.fixture
def server() -> Iterator[WandbSweepServer]:
    with closing(WandbSweepServer()) as running:
        yield running


@pytest.fixture
def programs(server: WandbSweepServer, tmp_path: Path) -> Programs:
    return Programs(tmp_path, server)


@pytest.fixture
def agents() -> Iterator[Callable[[Said], Said]]:
    """`agents(program)` sees to it that a program is gone at the end, and gives it back."""
    started: list[Said] = []

    def keep(program: Said) -> Said:
        started.append(program)
        return program

    yield keep
    for program in started:
        program.process.kill()
        program.process.wait()


def run_folder(programs: Programs, sweep: Sweep, run_id: str) -> Path:
    return programs.folder / "runs" / "digits_mlp" / f"sweep_{sweep.id}" / run_id


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def rows(server: WandbSweepServer, run_id: str, name: str) -> list[float]:
    return [row[name] for row in server.runs[run_id].history if name in row]


def test_a_grid_over_groups_and_every_kind_of_value_by_two_agents(server, programs, agents):
    # Set by parameters here.
    settings = [word for word in spec_of({})["command"] if not word.startswith(("model.hidden", "augment.preview"))]
    parameters: dict[str, Any] = {"optimizer": {"values": ["adamw", "sgd"]}}
    parameters |= {name: {"value": value} for name, value in VALUES.items()}
    sweep = programs.create(spec_of(parameters) | {"command": [*settings[:-1], "trainer.epochs=2", settings[-1]]})
    first, second = (agents(programs.agent(sweep)) for _ in range(2))
    output = first.end() + second.end()

    assert (first.process.returncode, second.process.returncode) == (0, 0)
    assert server.states() == {"sweep1run1": "finished", "sweep1run2": "finished"}, output
    assert [agent.told for agent in server.agents.values()] == [["run", "exit"], ["run", "exit"]]
    for run_id, optimizer in zip(sweep.runs, ("adamw", "sgd"), strict=True):
        run = server.runs[run_id]
        assert run.config["optimizer"] == run.config["optimizer.name"] == optimizer
        assert {name: run.config[name] for name in VALUES} == VALUES
        assert run.config["sweep_parameters"] == sorted(parameters)
        losses = rows(server, run_id, "val/loss")
        assert len(losses) == 2 and run.summary["val/loss"] == losses[-1]
        assert (run.fields["notes"], run.fields["tags"]) == (VALUES["logger.wandb.notes"], ["a b", "c"])
        folder = run_folder(programs, sweep, run_id)
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == (optimizer, 1e-05)
        assert config["trainer"]["clip_grad_norm"] is None
        assert summary(folder)["last"]["val/loss"] == losses[-1]
    assert "Ignoring project" not in output


def test_a_trial_that_fails_is_told_with_its_exit_code_and_the_search_goes_on(server, programs, agents):
    values = {"optimizer.lr": {"values": [-1.0, 0.01]}, "trainer.epochs": {"value": 1}}
    failing = programs.create(spec_of(values, name="failing"))
    # No run logs it; and a run that ends by its own doing: the loss is not finite.
    metric = {"metric": {"name": "val/acc", "goal": "maximize"}, "name": "metric"}
    wrong = programs.create(spec_of({"seed": {"value": 1}}) | metric)
    diverging = programs.create(spec_of({"optimizer.lr": {"value": 1e30}}, "optimizer=sgd", name="diverging"))
    outputs = [agent.end() for agent in [agents(programs.agent(sweep)) for sweep in (failing, wrong, diverging)]]

    states = {"sweep1run1": "failed", "sweep1run2": "finished", "sweep2run1": "failed", "sweep3run1": "failed"}
    assert server.states() == states, "\n".join(outputs)
    codes = {run.id: run.exit_code for run in server.runs.values()}
    assert codes == {"sweep1run1": 2, "sweep1run2": 0, "sweep2run1": 2, "sweep3run1": 1}
    assert "optimizer.lr=-1: must be a number above 0" in server.runs["sweep1run1"].summary["error"]
    assert "error: metric.name of sweep sweep2=val/acc: no run logs this metric" in outputs[1]
    assert "did you mean val/accuracy?" in outputs[1]
    assert rows(server, "sweep2run1", "train/loss") == []


@pytest.mark.slow
def test_hyperband_and_the_servers_stop_flag_end_trials_with_a_checkpoint(server, programs, agents):
    rule = {"type": "hyperband", "min_iter": 3, "eta": 2}
    parameters = {"optimizer.lr": {"values": [1e-2, 1e-7]}}
    sweep = programs.create(spec_of(parameters, *ENDLESS, early_terminate=rule, run_cap=2))
    pair = [agents(programs.agent(sweep)) for _ in range(2)]
    # The agent's signal ends the worse one.
    wait_for(lambda: "finished" in server.states().values())
    good, bad = sweep.runs
    assert server.states() == {good: "running", bad: "finished"}
    assert sweep.stopped == {bad}
    assert sorted(kind for agent in server.agents.values() for kind in agent.told)[-1] == "stop"
    # What a person clicks in W&B reaches the run itself.
    server.stop_by_stream.add(good)
    outputs = [agent.end() for agent in pair]
    assert server.states() == {good: "finished", bad: "finished"}, "\n".join(outputs)
    assert all("W&B: the sweep has stopped this trial" in output for output in outputs)
    assert sum("W&B: the server asks for this run to stop" in output for output in outputs) >= 1
    for run_id in sweep.runs:
        folder = run_folder(programs, sweep, run_id)
        assert summary(folder)["end_reason"] == "interrupted"
        assert (folder / "checkpoints" / "last.pt").is_file()
        assert server.runs[run_id].exit_code == 0
        assert server.runs[run_id].summary["steps"] == summary(folder)["steps"]
    assert [agent.process.returncode for agent in pair] == [0, 0]


@pytest.mark.slow
def test_a_preempted_trial_goes_on_with_another_agent(server, programs, agents):
    sweep = programs.create(spec_of({"model": {"value": "mlp"}, "seed": {"value": 5}}, "trainer.epochs=2000"))
    agent = agents(programs.agent(sweep, "--forward-signals"))
    (run_id,) = wait_for_runs(sweep, 1)
    wait_for(lambda: rows(server, run_id, "val/loss"))
    agent.process.send_signal(signal.SIGTERM)
    first = agent.end()
    assert (agent.process.returncode, server.states()[run_id]) == (0, "preempted"), first
    assert server.runs[run_id].exit_code == 143
    folder = run_folder(programs, sweep, run_id)
    before = summary(folder)
    assert before["end_reason"] == "interrupted" and before["epochs"] < 2000
    # The server sends the whole config back, as if the sweep had chosen all of it.
    second = agents(programs.agent(sweep)).end()
    assert server.agents["agent2"].told == ["resume", "exit"]
    assert server.states() == {run_id: "finished"}, second
    assert f"resuming from runs/digits_mlp/sweep_{sweep.id}/{run_id}/checkpoints/last.pt" in second
    assert [path.name for path in folder.parent.iterdir()] == [run_id]
    assert (summary(folder)["epochs"], summary(folder)["steps"]) == (2000, 6000)
    epochs = rows(server, run_id, "val/loss")
    assert len(epochs) >= 2000 and server.runs[run_id].summary["epochs"] == 2000
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert (config["seed"], config["model"]["name"]) == (5, "mlp")


def wait_for_runs(sweep: Sweep, count: int) -> list[str]:
    wait_for(lambda: len(sweep.runs) >= count)
    return sweep.runs[:count]


@pytest.mark.slow
def test_an_agent_killed_without_forwarding_leaves_its_trial_to_end_well(server, programs, agents):
    sweep = programs.create(spec_of({"seed": {"values": [1, 2]}}, "trainer.epochs=100"))
    agent = agents(programs.agent(sweep))
    (run_id,) = wait_for_runs(sweep, 1)
    wait_for(lambda: server.runs[run_id].fields.get("host"))
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(timeout=60) == -signal.SIGTERM
    wait_for(lambda: server.states()[run_id] == "finished")
    assert summary(run_folder(programs, sweep, run_id))["end_reason"] == "all epochs done"
    assert len(sweep.runs) == 1


@pytest.mark.slow
def test_a_server_that_dies_leaves_a_whole_run_on_disk(tmp_path, agents):
    settings = ("trainer.epochs=1600", "logger.wandb.finish_timeout_seconds=3")
    with closing(WandbSweepServer()) as server:
        programs = Programs(tmp_path, server)
        sweep = programs.create(spec_of({"seed": {"value": 1}}, *settings))
        agent = agents(programs.agent(sweep))
        (run_id,) = wait_for_runs(sweep, 1)
        wait_for(lambda: rows(server, run_id, "val/loss"))
        server.die()
        seen = len(rows(server, run_id, "val/loss"))
    folder = run_folder(programs, sweep, run_id)
    wait_for(lambda: (folder / "summary.json").exists())
    assert (summary(folder)["end_reason"], summary(folder)["epochs"]) == ("all epochs done", 1600)
    assert seen < 1600
    wait_for(lambda: "wandb sync --include-online" in (folder / "train.log").read_text(encoding="utf-8"))
    agent.process.kill()
    with closing(WandbSweepServer()) as again:
        programs = Programs(tmp_path, again)
        (kept,) = (folder / "wandb").glob("run-*")
        done = programs.run([str(BIN / "wandb"), "sync", "--include-online", str(kept)])
        assert done.returncode == 0, done.stdout
        assert len(rows(again, run_id, "val/loss")) == 1600


@pytest.mark.slow
def test_bayes_gets_the_figures_of_the_trials_before(server, programs, agents):
    parameters = {"optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-1}}
    sweep = programs.create(spec_of(parameters, "trainer.epochs=2", method="bayes", run_cap=4))
    output = agents(programs.agent(sweep)).end(500)
    assert list(server.states().values()) == ["finished"] * 4, output
    rates = [sweep.given[run_id]["optimizer.lr"] for run_id in sweep.runs]
    losses = [server.runs[run_id].summary["val/loss"] for run_id in sweep.runs]
    assert [server.runs[run_id].config["optimizer.lr"] for run_id in sweep.runs] == rates
    best = rates[min(range(3), key=lambda number: losses[number])]
    # The stand-in's search draws within a twentieth of the range about the best so far.
    assert abs(rates[3] / best) < 10**0.26 and abs(best / rates[3]) < 10**0.26


@pytest.mark.slow
def test_the_files_of_conf_are_taken_as_they_stand(server, programs, agents):
    """Each is made on the server by `wandb sweep`, and one trial of the smallest is run by the agent."""
    conf = Path(__file__).resolve().parents[2] / "conf" / "sweep"
    for file in sorted(conf.glob("*.yaml")):
        done = programs.run([str(BIN / "wandb"), "sweep", str(file)])
        assert done.returncode == 0 and "Creating sweep with ID" in done.stdout, done.stdout
    assert {sweep.config["name"] for sweep in server.sweeps.values()} == {file.stem for file in conf.glob("*.yaml")}
    digits = next(sweep for sweep in server.sweeps.values() if sweep.config["name"] == "digits_mlp")
    output = agents(programs.agent(digits, "--count", "1")).end()
    assert server.state_of(server.runs[digits.runs[0]]) == "finished", output
    assert len(rows(server, digits.runs[0], "val/loss")) == 10


def test_without_a_key_a_trial_says_so_before_it_trains(tmp_path):
    programs = Programs(tmp_path, WANDB_SWEEP_ID="s1", WANDB_RUN_ID="r1", WANDB_BASE_URL="http://127.0.0.1:9")
    del programs.environment["WANDB_API_KEY"]
    (tmp_path / "p.yaml").write_text("wandb_version: 1\nseed:\n  value: 3\n", encoding="utf-8")
    programs.environment["WANDB_SWEEP_PARAM_PATH"] = str(tmp_path / "p.yaml")
    done = programs.run([str(BIN / "python"), "-m", "cvtrain", *spec_of({})["command"][4:-1]])
    assert done.returncode == 2
    assert "error: WANDB_API_KEY: no API key for http://127.0.0.1:9, and this run is a trial of sweep s1" in done.stdout
    assert not list(tmp_path.rglob("last.pt"))
    assert not (tmp_path / "runs").exists()
