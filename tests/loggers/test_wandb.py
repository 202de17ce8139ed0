"""The real W&B client against a real small server, each time in a process of its own, as a run has it."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from wandb_server import API_KEY, ENTITY, WandbServer

from cvtrain.config.errors import ConfigError
from cvtrain.loggers.wandb_session import check_session

ROOT = Path(__file__).resolve().parents[2]

# One process, several runs one after the other, as in a multirun. Each says what it logged and how long it took.
CODE = """
import json, logging, sys, time
from pathlib import Path

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
from cvtrain.config.schema.logger import LoggersConfig, WandbConfig, WandbMode
from cvtrain.loggers import build_loggers

for options in json.loads(sys.argv[1]):
    run_dir, start = Path(options["run_dir"]), time.monotonic()
    settings = options.get("wandb", {})
    if "mode" in settings:
        settings["mode"] = WandbMode(settings["mode"])
    config = {"optimizer": {"lr": 0.1}, "data": {"kwargs": {"token": "hush-hush-1"}}, "model": {"hidden": [8, 8]}}
    logger = build_loggers(
        LoggersConfig(wandb=WandbConfig(**settings)), run_dir=run_dir, run_config=config, name="folder name",
        state=options.get("state"),
    )
    ready = time.monotonic() - start
    for step in (10, 20):
        logger.log_metrics(step, 0, {"train/loss": 1 / step, "train/lr": 0.1})
    logger.log_metrics(20, 0, {"val/accuracy": 0.75, "val/loss": float("nan")})
    logging.getLogger("cvtrain.training.trainer").info("a line of the log")
    if "gate" in options:
        print("WAITING", flush=True)
        while not Path(options["gate"]).exists():
            time.sleep(0.02)
        logger.log_metrics(30, 1, {"train/loss": 1 / 30})
    for image in options.get("images", []):
        logger.log_image("val/confusion", Path(image), 20)
    logger.log_summary({"best": {"val/accuracy": 0.75, "step": 20}})
    for checkpoint in options.get("checkpoints", []):
        logger.log_artifact(Path(checkpoint))
    state, finishing = logger.state(), time.monotonic()
    logger.finish(options.get("exit_code", 0))
    times = {"ready": ready, "finish": time.monotonic() - finishing}
    print("RESULT", json.dumps({"names": logger.names, "state": state, **times}), flush=True)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with closing(WandbServer()) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment without any W&B account or proxy, with an empty home."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WANDB_") and not name.lower().endswith("_proxy")
    }
    return {**kept, "HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_ERROR_REPORTING": "false"}


def start(environment: dict[str, str], cwd: Path, *runs: dict[str, Any], **options: Any) -> "subprocess.Popen[str]":
    arguments: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-c", CODE, json.dumps(runs)]
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment | path, cwd=cwd, text=True, **(arguments | options))


def results(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT ")]


def run(environment: dict[str, str], cwd: Path, *runs: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    process = start(environment, cwd, *runs)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return results(output), output


def offline_folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def online(server: WandbServer) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY}


def test_online_run_and_its_continuation(server: WandbServer, environment: dict[str, str], tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 3), (200, 30, 30)).save(tmp_path / "plot.png")
    (tmp_path / "best.pt").write_bytes(b"weights" * 100)
    settings = {"project": "flowers", "group": "g", "job_type": "train", "tags": ["a", "b"], "notes": "a note"}
    first = {
        "run_dir": str(tmp_path / "run"),
        "wandb": {**settings, "log_checkpoint": True},
        "images": [str(tmp_path / "plot.png")],
        "checkpoints": [str(tmp_path / "best.pt")],
        "exit_code": 3,
    }
    ((result,), output) = run(environment | online(server), tmp_path, first)

    kept = server.only_run()
    assert result["names"] == ["csv", "wandb"], output
    assert result["state"]["wandb"] == {"run_id": kept.id}
    assert f"W&B run: {server.url}/{ENTITY}/flowers/runs/{kept.id}" in output
    assert "WARNING" not in output
    assert server.keys == {API_KEY}
    # What the run is.
    assert kept.project == "flowers"
    assert kept.fields["displayName"] == "folder name"
    assert (kept.fields["groupName"], kept.fields["jobType"]) == ("g", "train")
    assert (kept.fields["tags"], kept.fields["notes"]) == (["a", "b"], "a note")
    own = {key: value for key, value in kept.config.items() if key != "_wandb"}
    assert own == {"optimizer.lr": 0.1, "data.kwargs.token": "<redacted>", "model.hidden": [8, 8]}
    # What it logged: rows of one step do not push each other out, and all are drawn over `step`.
    rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in kept.history]
    assert rows[:2] == [
        {"step": 10, "epoch": 1, "train/loss": 0.1, "train/lr": 0.1},
        {"step": 20, "epoch": 1, "train/loss": 0.05, "train/lr": 0.1},
    ]
    assert (rows[2]["step"], rows[2]["val/accuracy"]) == (20, 0.75)
    assert rows[2]["val/loss"] != rows[2]["val/loss"]
    assert [row["_step"] for row in kept.history] == [0, 1, 2, 3]
    assert {"1": "step", "2": "*"}.items() <= {**kept.config["_wandb"]["m"][0], **kept.config["_wandb"]["m"][1]}.items()
    assert (rows[3]["val/confusion"]["width"], rows[3]["val/confusion"]["height"]) == (4, 3)
    assert kept.files[rows[3]["val/confusion"]["path"]] == (tmp_path / "plot.png").read_bytes()
    assert (kept.summary["best.val/accuracy"], kept.summary["best.step"]) == (0.75, 20)
    assert (kept.complete, kept.exit_code) == (True, 3)
    assert any("a line of the log" in line for line in kept.output)
    # The checkpoint.
    (artifact,) = server.artifacts
    assert artifact["committed"] and artifact["artifactTypeName"] == "model"
    assert artifact["artifactCollectionName"] == f"model-{kept.id}"
    assert {alias["alias"] for alias in artifact["aliases"]} >= {"best"}
    assert server.uploads["artifact-1/best.pt"] == b"weights" * 100
    # On disk: in the run folder and nowhere else, without the key.
    assert not (tmp_path / "wandb").exists()
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert API_KEY.encode() not in path.read_bytes(), path

    second = {"run_dir": str(tmp_path / "run"), "wandb": settings, "state": result["state"]}
    run(environment | online(server), tmp_path, second)
    assert list(server.runs) == [kept.id]
    assert [row["_step"] for row in kept.history] == list(range(7))
    assert (kept.exit_code, len(server.artifacts)) == (0, 1)


@pytest.mark.parametrize("terminal", [False, True], ids=["no terminal", "terminal"])
def test_without_a_key_the_run_is_offline_and_nothing_is_asked(
    environment: dict[str, str], tmp_path: Path, terminal: bool
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    runs = [
        {
            "run_dir": str(tmp_path / "first"),
            "wandb": {"log_checkpoint": True},
            "checkpoints": [str(tmp_path / "best.pt")],
        },
        {"run_dir": str(tmp_path / "second"), "wandb": {"mode": "offline"}},
        {"run_dir": str(tmp_path / "third"), "wandb": {"mode": "disabled"}},
    ]
    if terminal:
        output = run_in_terminal(environment, tmp_path, *runs)
        found = results(output)
    else:
        found, output = run(environment, tmp_path, *runs)
    assert [result["names"] for result in found] == [["csv", "wandb"]] * 3
    assert all(result["ready"] < 20 and result["finish"] < 10 for result in found)
    (folder,) = offline_folders(tmp_path / "first")
    (chosen,) = offline_folders(tmp_path / "second")
    warnings = [line for line in output.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    for part in ("no API key", "wandb login", "WANDB_API_KEY", "logger.wandb.mode=offline", f"wandb sync {folder}"):
        assert part in warnings[0]
    assert f"to upload it: wandb sync {chosen}" in output
    assert "W&B is disabled" in output
    assert not (tmp_path / "third" / "wandb").exists()
    assert not (tmp_path / "wandb").exists()
    (record,) = folder.glob("run-*.wandb")
    content = record.read_bytes()
    assert b"train/loss" in content and b"optimizer.lr" in content
    assert b"hush-hush-1" not in content


def run_in_terminal(environment: dict[str, str], cwd: Path, *runs: dict[str, Any]) -> str:
    """The output of a process whose stdin, stdout and stderr are a terminal at which nobody answers."""
    leader, follower = pty.openpty()
    process = start(environment, cwd, *runs, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(leader, 65536):
                chunks.append(chunk)
        except OSError:
            return  # Linux says so when the last user of the terminal is gone.

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        reader.join()
        os.close(leader)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def test_a_refused_connection_is_offline_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": API_KEY}
    options = {"run_dir": str(tmp_path / "run"), "wandb": {"init_timeout_seconds": 1}}
    ((result,), output) = run(environment | nowhere, tmp_path, options)
    assert result["ready"] < 15
    assert f"WARNING W&B: http://127.0.0.1:{port} cannot be reached" in output
    assert len(offline_folders(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_server_that_refuses_the_run(server: WandbServer, environment: dict[str, str], tmp_path: Path) -> None:
    server.refuse_runs = True
    options = {"run_dir": str(tmp_path / "run"), "wandb": {"init_timeout_seconds": 2}}
    ((result,), output) = run(environment | online(server), tmp_path, options)
    assert result["names"] == ["csv", "wandb"]
    assert "WARNING W&B: no run could be opened on the server" in output
    assert len(offline_folders(tmp_path / "run")) == 1


@pytest.mark.slow  # The client's own look-ups wait ten seconds more than its timeout.
def test_a_server_that_never_answers(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hung = {"WANDB_BASE_URL": url, "WANDB_API_KEY": API_KEY}
        options = {"run_dir": str(tmp_path / "run"), "wandb": {"init_timeout_seconds": 3}}
        ((result,), output) = run(environment | hung, tmp_path, options)
    assert result["ready"] < 40
    assert "WARNING W&B: no run could be opened on the server" in output
    assert len(offline_folders(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle(environment: dict[str, str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "best.pt").write_bytes(b"weights")
    options = {
        "run_dir": str(tmp_path / "run"),
        "wandb": {"finish_timeout_seconds": 2, "log_checkpoint": True},
        "gate": str(gate),
        "checkpoints": [str(tmp_path / "best.pt")],
    }
    with closing(WandbServer()) as server:
        process = start(environment | online(server), tmp_path, options)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("WAITING"):
                break
        server.die()
    gate.touch()
    began = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    output = "".join(lines) + rest
    # The whole process ends too: the client's own exit handler does not wait for the server.
    assert (process.returncode, time.monotonic() - began < 25) == (0, True), output
    (result,) = results(output)
    assert (result["names"], 1 < result["finish"] < 15) == (["csv", "wandb"], True)
    unsent, warning = [line for line in output.splitlines() if line.startswith("WARNING")]
    assert re.search(
        r"the checkpoint was not sent .* wandb artifact put --type model --name tester/cvtrain/model-", unsent
    )
    command = re.search(r"wandb (sync --include-online (\S+))$", warning)
    assert "logger.wandb.finish_timeout_seconds=2" in warning and command is not None
    # Nothing is lost: the command that the warning names brings every row to a server.
    with closing(WandbServer()) as again:
        synced = subprocess.run(
            [sys.executable, "-m", "wandb", *command[1].split()],
            env=environment | online(again),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert synced.returncode == 0, synced.stdout + synced.stderr
        assert [row["step"] for row in again.only_run().history] == [10, 20, 20, 30]


def test_under_a_sweep_project_and_id_are_the_agents(
    server: WandbServer, environment: dict[str, str], tmp_path: Path
) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("wandb_version: 1\noptimizer.lr:\n  value: 0.5\n")
    agent = {
        "WANDB_SWEEP_ID": "sweep1",
        "WANDB_RUN_ID": "fromagent",
        "WANDB_PROJECT": "sweeps",
        "WANDB_ENTITY": ENTITY,
        "WANDB_DIR": str(tmp_path),
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
    }
    options = {"run_dir": str(tmp_path / "run"), "wandb": {"project": "mine", "name": "mine"}}
    _, output = run(environment | online(server) | agent, tmp_path, options)
    kept = server.only_run()
    assert (kept.id, kept.project, kept.fields["sweep"]) == ("fromagent", "sweeps", "sweep1")
    assert kept.fields.get("displayName") is None
    assert kept.config["optimizer.lr"] == 0.5
    assert "Ignoring" not in output
    assert not (tmp_path / "wandb").exists()


def test_mode_of_the_config_beats_wandb_mode(server: WandbServer, environment: dict[str, str], tmp_path: Path) -> None:
    runs = [
        {"run_dir": str(tmp_path / "environment")},
        {"run_dir": str(tmp_path / "config"), "wandb": {"mode": "online"}},
    ]
    variables = {"WANDB_MODE": "offline", "WANDB_PROJECT": "theirs", "WANDB_NAME": "chosen"}
    _, output = run(environment | online(server) | variables, tmp_path, *runs)
    assert len(offline_folders(tmp_path / "environment")) == 1
    assert "WARNING" not in output
    kept = server.only_run()
    assert (kept.project, kept.fields["displayName"]) == ("theirs", "chosen")


def test_secrets_of_the_command_line_are_not_sent(
    server: WandbServer, environment: dict[str, str], tmp_path: Path
) -> None:
    # The client keeps sys.argv; here the options themselves are on it, with a secret among them.
    options = {"run_dir": str(tmp_path / "run"), "comment": "data.kwargs.token=hush-hush-2"}
    run(environment | online(server), tmp_path, options)
    kept = server.only_run()
    assert "hush-hush-2" not in json.dumps(kept.config) + json.dumps(kept.fields)
    assert all(b"hush-hush-2" not in content for content in kept.files.values())
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"hush-hush-2" not in path.read_bytes(), path


@pytest.mark.parametrize("mode", ["bogus", "", "Online"])
def test_a_wrong_wandb_mode_is_an_error_by_name(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(ConfigError, match=f"WANDB_MODE={mode}: an environment variable that must be one of online"):
        check_session(mode=None, probe_seconds=1)
