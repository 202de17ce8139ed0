"""The engine `wandb`: creates the sweep on W&B's server, and starts agents on this machine that run its trials."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.machine import usable_cores
from cvtrain.config.redact import redact
from cvtrain.loggers.wandb_session import check_session
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.signals import StopSignals
from cvtrain.sweep.search import Search
from cvtrain.sweep.wandb_command import agents_command, key_of

SPEC_FILE = "wandb_sweep.yaml"
TICK_SECONDS = 0.2
# Timeouts of the server's answers.
CONNECT_SECONDS, CREATE_SECONDS = 5.0, 40.0
COLORS = re.compile(r"\x1b\[[0-9;]*m")
WANDB = (sys.executable, "-m", "wandb")


def search_with_wandb(search: Search) -> int:
    """Create the sweep on the server and run `sweep.workers` agents until it has no more trials for them.

    Returns:
        The exit code: 0, or 128 + the number of a signal, after which the trials have saved and ended.

    Raises:
        ConfigError: no key, no server, or the server does not take the search; nothing has started then.
        RunError: an agent ended by an error of its own.
    """
    content = content_for_server(search)
    require_server()
    search.folder.mkdir(parents=True, exist_ok=True)
    path = create_sweep(content, search.folder / SPEC_FILE)
    print(f"agents, here or on other machines: wandb agent {path}", flush=True)
    workers = search.config.sweep.workers
    return run_agents(path, workers) if workers else 0


def content_for_server(search: Search) -> dict[str, Any]:
    """Return the sweep file for the server, with the settings of the command line.

    Raises:
        ConfigError: the trials would not log to W&B, or be ended by a rule that its server does not know.
    """
    content = dict(search.spec.content)
    termination = search.spec.early_termination
    if termination is not None and termination.kind != "hyperband":
        raise ConfigError(
            "early_terminate.type",
            termination.kind,
            "is understood by engine=local only: W&B's server would end no trial by it",
            "type: hyperband, or leave early_terminate out",
        )
    content["command"] = agents_command(content, search.fixed)
    loggers = [word for word in content["command"] if key_of(word) == "logger"]
    if loggers and not any("wandb" in word for word in loggers):
        raise ConfigError(
            loggers[0], rule="the server would wait for the trials' figures", remedy="logger=wandb, or leave it out"
        )
    content["name"] = search.name
    if search.config.sweep.trials is not None:
        content["run_cap"] = search.config.sweep.trials
    return content


def require_server() -> None:
    """Check within seconds, and without a question at the terminal, that there is a key and a server.

    Raises:
        ConfigError: one of them is missing.
    """
    mode = os.environ.get("WANDB_MODE")
    if mode not in (None, "online", "shared", "run"):
        raise ConfigError("WANDB_MODE", mode, "engine=wandb needs its server", "unset WANDB_MODE, or take engine=local")
    session = check_session(mode=None, probe_seconds=CONNECT_SECONDS)
    if not session.has_key:
        remedy = "`wandb login`, or set WANDB_API_KEY; engine=local needs no account"
        raise ConfigError("engine", "wandb", str(session.offline_reason), remedy)
    if session.offline_reason is not None:
        remedy = "check the network and WANDB_BASE_URL; engine=local needs no server"
        raise ConfigError("engine", "wandb", session.offline_reason, remedy)


def create_sweep(content: Mapping[str, Any], file: Path) -> str:
    """Create the sweep with `wandb sweep` and return its path, entity/project/id.

    Args:
        content: the sweep.
        file: where it is written, for `wandb sweep` and for later.

    Raises:
        ConfigError: the server does not take it, or does not answer.
    """
    with atomic_write(file) as stream:
        stream.write(redact(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)))
    try:
        done = subprocess.run(
            [*WANDB, "sweep", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CREATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _silent_server(f"it took more than {CREATE_SECONDS:.0f} s to make the sweep") from error
    said = COLORS.sub("", done.stdout)
    found = re.search(r"wandb agent (\S+)", said)
    if done.returncode != 0 and re.search(r"not respond in time|timed out", said, re.IGNORECASE):
        raise _silent_server(_reason(said))
    if done.returncode != 0 or found is None:
        places = ", ".join(f"{key}: {content[key]}" for key in ("entity", "project") if key in content)
        raise ConfigError(
            "sweep",
            file,
            f"W&B's server did not take it: {_reason(said)}",
            f"{places or 'no entity and no project'} in the sweep file; wandb sweep {file} says more",
        )
    for line in said.splitlines():
        if found[0] not in line:  # the caller prints this one for agents on any machine
            print(line.removeprefix("wandb: "))
    return found[1].strip("'")


def _silent_server(reason: str) -> ConfigError:
    remedy = "try again later; engine=local needs no server"
    return ConfigError("engine", "wandb", f"W&B's server does not answer: {reason}", remedy)


def _reason(said: str) -> str:
    """Return the line of the program's output that names the error."""
    lines = [line.removeprefix("wandb: ").strip() for line in said.splitlines()]
    found = [line for line in lines if re.search(r"error|denied|not found|invalid|failed|in time", line, re.IGNORECASE)]
    return redact((found or lines or ["no output"])[-1].removeprefix("ERROR ").removeprefix("Error: "))


def run_agents(path: str, count: int) -> int:
    """Run `count` agents until all have ended. After a signal their trials save and end, and so do they.

    Returns:
        The exit code: 0, or 128 + the number of the signal.

    Raises:
        RunError: an agent failed.
    """
    agents: list[subprocess.Popen[bytes]] = []
    environment = _agents_environment(count)
    with StopSignals() as signals, signals.deferred():
        try:
            for _ in range(count):
                if signals.received is None:
                    # In a session of its own: Ctrl-C reaches this process alone, which tells the agents once.
                    agents.append(
                        subprocess.Popen(
                            [*WANDB, "agent", "--forward-signals", path],
                            stdin=subprocess.DEVNULL,
                            env=environment,
                            start_new_session=True,
                        )
                    )
            is_stopping = False
            while any(agent.poll() is None for agent in agents):
                if signals.received is not None and not is_stopping:
                    is_stopping = True
                    _terminate(agents)
                time.sleep(TICK_SECONDS)
        finally:
            _terminate(agents)
    failed = [str(agent.returncode) for agent in agents if agent.returncode]
    if failed and signals.received is None:
        raise RunError(f"agents of W&B ended with exit codes {', '.join(failed)}; their output is above")
    return signals.exit_code


def _terminate(agents: Sequence["subprocess.Popen[bytes]"]) -> None:
    for agent in agents:
        if agent.poll() is None:
            agent.terminate()


def _agents_environment(count: int) -> dict[str, str]:
    """Return this process's environment, with this interpreter as `python` and the cores split among the agents."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))
    if count > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    return environment
