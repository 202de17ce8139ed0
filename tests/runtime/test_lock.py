"""One process per run folder: who is refused, who waits, and what a dead holder leaves."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.runtime import lock as module
from cvtrain.runtime.lock import LOCK_FILE, run_lock

ROOT = Path(__file__).resolve().parents[2]
# Takes the lock, says so, and keeps it until its stdin is closed.
HOLDER = """
import sys
from pathlib import Path
from cvtrain.runtime.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        import os, time
        ready, told = os.pipe()
        if os.fork() == 0:
            os.write(told, b"1")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of `tmp_path`."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17"},
            start_new_session=True,
        )
        assert process.stdout.readline() == "held\n"
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(holder, tmp_path):
    process = holder()
    with pytest.raises(ConfigError) as refused, run_lock(tmp_path):
        pass
    text = str(refused.value)
    assert f"hydra.run.dir={tmp_path}: another process trains in this run folder" in text
    assert f"process {process.pid} on {socket.gethostname()}, Slurm job 17, since 20" in text


def test_a_dead_holder_locks_nothing(holder, tmp_path):
    process = holder()
    process.kill()
    process.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_fork_that_outlives_the_holder_locks_nothing(holder, tmp_path):
    process = holder("fork")
    process.kill()
    process.wait()
    os.killpg(process.pid, 0)  # raises unless the fork is alive
    with run_lock(tmp_path):
        pass


def test_who_goes_on_waits_for_a_holder_that_is_about_to_end(holder, tmp_path, caplog):
    process = holder()
    caplog.set_level("INFO")
    started = time.monotonic()
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    with run_lock(tmp_path, wait_seconds=20):
        assert 0.3 < time.monotonic() - started < 10
    assert f"{tmp_path} is in use by process {process.pid}" in caplog.text


def test_the_wait_ends(holder, tmp_path):
    holder()
    started = time.monotonic()
    with pytest.raises(ConfigError), run_lock(tmp_path, wait_seconds=0.3):
        pass
    assert time.monotonic() - started >= 0.3


def test_the_lock_can_be_taken_again_and_again(tmp_path):
    for _ in range(3):
        with run_lock(tmp_path / "new"), pytest.raises(ConfigError), run_lock(tmp_path / "new"):
            pass


def test_an_error_inside_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with run_lock(tmp_path):
        pass
    assert f"{tmp_path}: this file system has no locks" in caplog.text


def test_another_error_of_the_lock_is_not_hidden(tmp_path, monkeypatch):
    def fail(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), run_lock(tmp_path):
        pass


def test_train_refuses_a_folder_in_use_and_leaves_it_as_it_is(holder, tmp_path, cvtrain):
    holder()
    before = sorted(path.name for path in tmp_path.iterdir())
    answer = cvtrain(f"hydra.run.dir={tmp_path}")
    assert answer.status == 2
    assert "another process trains in this run folder" in answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "train.log"])
