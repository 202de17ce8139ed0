"""`serve` as a command: it answers as the classifier does, ends cleanly, and says in one line what is wrong."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cvtrain as face

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_answers_and_finishes_what_it_began(run, photos, number, tmp_path):
    words = [f"checkpoint={run.best_checkpoint}", "port=0", "device=cpu", "batch_size=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cvtrain", "serve", *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        for line in process.stdout:
            if found := re.search(r"serving at http://127\.0\.0\.1:(\d+) until Ctrl-C", line):
                break
        photo = (photos / "ant" / "3.jpg").read_bytes()
        expected = face.load(run.best_checkpoint, device="cpu").predict(photos / "ant" / "3.jpg", top_k=2)[0]
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)) as client:
            for begun in (False, True):
                client.putrequest("POST", "/predict")
                client.putheader("Content-Length", str(len(photo)))
                client.endheaders(photo[:100])
                if begun:
                    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]))) as other:
                        other.request("GET", "/health")  # the head above has been read by now
                        assert other.getresponse().status == 200
                    process.send_signal(number)
                client.send(photo[100:])
                answer = client.getresponse()
                predictions = json.loads(answer.read())["predictions"]
                assert tuple(each["probability"] for each in predictions) == expected.probs
                assert tuple(each["class"] for each in predictions) == expected.classes
        rest = process.stdout.read()
    assert (process.returncode, rest) == (0, "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_wrong_commands_say_what_is_wrong(cvtrain, run, tmp_path, monkeypatch):
    best = f"checkpoint={run.best_checkpoint}"
    (tmp_path / "other.pt").write_bytes(b"no checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answers = {
            (best, f"port={port}"): f"port={port}: is in use at 127.0.0.1",
            (best, "host=no.such.host.invalid", "port=0"): "host=no.such.host.invalid: is no address",
            (best, "host=192.0.2.1", "port=0"): "host=192.0.2.1: is no address of this machine",
            (best, "port=70000"): "port=70000: must be",
            (best, "memory_mb=5"): "memory_mb=5: is less than max_mb=20",
            (best, "top_k=0"): "top_k=0: must be a whole number at least 1",
            (): "checkpoint",
            ("checkpoint=none.pt",): "checkpoint=none.pt",
            ("checkpoint=other.pt", "port=0"): "other.pt",
        }
        for words, expected in answers.items():
            found = cvtrain("serve", *words)
            assert (found.status, found.out) == (2, "")
            assert expected in found.err.splitlines()[0]
            assert len([line for line in found.err.splitlines() if line[:1] != " "]) == 1
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    found = cvtrain("serve", best)
    assert (found.status, "not installed: uvicorn" in found.err) == (2, True)
    assert "uv sync --extra serve, or pip install uvicorn" in found.err
