"""The processes that `trainer.devices=N` starts: how their ends are told, and signals that come while they start."""

import os
import signal
import subprocess
import time

import pytest

from cvtrain.distributed import launcher as module
from cvtrain.distributed.launcher import launch


def start_shells(monkeypatch, commands, before=lambda rank: None):
    """Let `launch` start these instead of cvtrain."""
    started = []

    def start(arguments, environment, pipe):
        rank = int(environment["RANK"])
        started.append(rank)
        process = subprocess.Popen(["sh", "-c", commands[rank]])
        before(rank)
        return process

    monkeypatch.setattr(module, "_start", start)
    return started


def test_a_process_that_was_killed_is_named(monkeypatch, capfd):
    start_shells(monkeypatch, ["exec sleep 30", "kill -KILL $$"])
    assert launch([], 2, {}) == 128 + signal.SIGKILL
    told = capfd.readouterr().err
    assert told == "error: process 1 of 2 was killed by SIGKILL, most often by the system because memory ran out\n"


def test_one_that_ends_by_itself_has_said_why(monkeypatch, capfd):
    start_shells(monkeypatch, ["exec sleep 30", "exit 7"])
    assert launch([], 2, {}) == 7
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_they_are_started_is_not_lost(monkeypatch, number):
    started = start_shells(
        monkeypatch, ["exec sleep 30"] * 3, before=lambda rank: os.kill(os.getpid(), number) if rank == 1 else None
    )
    begun = time.monotonic()
    assert launch([], 3, {}) == 128 + number
    assert started == [0, 1] and time.monotonic() - begun < 10
