"""The engine `wandb`: makes the search on W&B's server, and starts agents on this machine that run its trials."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.machine import usable_cores
from cvtrain.config.redact import redact
from cvtrain.loggers.wandb_session import check_session
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.signals import leave_lost_terminal, signals_to_handle
from cvtrain.sweep.search import Search
from cvtrain.sweep.wandb_command import agents_command, key_of

SPEC_FILE = "wandb_sweep.yaml"
# What the server may take to answer, at each step.
CONNECT_SECONDS, CREATE_SECONDS = 5.0, 40.0
COLORS = re.compile(r"\x1b\[[0-9;]*m")
WANDB = (sys.executable, "-m", "wandb")


def search_with_wandb(search: Search) -> int:
    """Make the sweep on the server and run `sweep.workers` agents until it has no more trials for them.

    Returns:
        The exit code: 0; 130, 143 or 138 after a signal, when the trials have saved and ended.

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
    """The sweep file as the server gets it: with the settings of the command line.

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
    """See that there is a key and a server, within seconds and without a question at the terminal.

    Raises:
        ConfigError: there is not.
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
    """Let `wandb sweep` make the sweep; gives its path, entity/project/id.

    Args:
        content: the sweep.
        file: where it is kept, for the program and for later.

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
        if found[0] not in line:  # which the caller words for agents on any machine
            print(line.removeprefix("wandb: "))
    return found[1].strip("'")


def _silent_server(reason: str) -> ConfigError:
    remedy = "try again later; engine=local needs no server"
    return ConfigError("engine", "wandb", f"W&B's server does not answer: {reason}", remedy)


def _reason(said: str) -> str:
    """The words of the program that say what went wrong."""
    lines = [line.removeprefix("wandb: ").strip() for line in said.splitlines()]
    told = [line for line in lines if re.search(r"error|denied|not found|invalid|failed|in time", line, re.IGNORECASE)]
    return redact((told or lines or ["it said nothing"])[-1].removeprefix("ERROR ").removeprefix("Error: "))


def run_agents(path: str, count: int) -> int:
    """Run `count` agents until all have ended. A signal is passed on: their trials save and end, and so do they."""
    agents: list[subprocess.Popen[bytes]] = []
    with _passed_on(agents) as received:
        for _ in range(count):
            # Of their own session, so that Ctrl-C comes to them from here, once, and their trials in turn.
            agents.append(
                subprocess.Popen(
                    [*WANDB, "agent", "--forward-signals", path],
                    stdin=subprocess.DEVNULL,
                    env=_agents_environment(count),
                    start_new_session=True,
                )
            )
            if received:  # while this one was being started, which has not been told
                agents[-1].terminate()
                break
        try:
            codes = [agent.wait() for agent in agents]
        finally:
            for agent in agents:
                if agent.poll() is None:
                    agent.terminate()
    if received:
        return 128 + received[0]
    if any(codes):
        raise RunError(f"agents of W&B ended with exit codes {', '.join(map(str, codes))}; what they said is above")
    return 0


def _agents_environment(count: int) -> dict[str, str]:
    """This process's, with `python` as this interpreter, and the cores shared out among the agents."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))
    if count > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    return environment


@contextmanager
def _passed_on(agents: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Inside, signals go to the agents as SIGTERM, which their trials take as a wish to save and end."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        leave_lost_terminal()
        received.append(number)
        for agent in agents:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, handle) for number in signals_to_handle()}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
