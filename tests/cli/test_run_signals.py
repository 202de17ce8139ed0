"""Signals in every phase of a real process: it is gone within seconds, and goes on later as if nothing had been."""

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_server import API_KEY, WandbServer

from cvtrain.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from chaos_compare import differences, temporary_files  # noqa: E402
from chaos_processes import WarmStart, group_members, wait_for_end, wait_for_group  # noqa: E402

SETTINGS = (
    "data=dataset",
    "data.target=tests.support.slow_parts.Digits",
    "data.train_kwargs.split=train",
    "data.val_kwargs.split=val",
    "data.test_kwargs.split=test",
    "data.image_size=8",
    "data.channels=1",
    "data.mean=[0.3]",
    "data.std=[0.4]",
    "model=custom",
    "model.target=tests.support.slow_parts.Net",
    "data.batch_size=16",
    "augment=none",
    "augment.transforms=[{RandomRotation: {degrees: 10}}]",
    "augment.mixup_alpha=0.2",
    "plots=false",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "trainer.epochs=2",
    "trainer.ema_decay=0.9",
    "trainer.log_every_steps=3",
    "checkpoint.every_steps=4",
    "resume=auto",
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGHUP: 129, signal.SIGXCPU: 152}
# From the phase's next safe point on: what is promised, and what a test may take on a machine that is busy with others.
SECONDS_TO_LEAVE = 5.0
PATIENCE = 15.0
# What is slow, for how long, whether only once, with how many data workers, and whether training has begun by then.
PHASES = {
    "assembly": ("assembly", 30.0, True, 0, False),
    "step": ("step", 0.5, False, 2, True),
    "compilation": ("step", 2.0, True, 0, True),  # the first step, which is slow for another reason here
    "evaluation": ("evaluation", 0.5, False, 0, True),
    "reading": ("reading", 0.5, False, 0, True),
    "reading in workers": ("reading", 0.5, False, 2, True),
    "report": ("report", 30.0, True, 0, True),
}
# A sleep that nobody waits for: there the signal is an order.
ORDERS = ("assembly", "report")


class Runs:
    """Starts runs in folders below `folder`, and knows how the untouched one ends."""

    def __init__(self, starter: WarmStart, folder: Path) -> None:
        self.starter = starter
        self.folder = folder
        self.whole = folder / "whole"
        self.start("whole")
        assert wait_for_end(starter, 60) == 0, self.said("whole")

    def start(self, name: str, *overrides: str, **variables: str) -> int:
        arguments = [*SETTINGS, f"hydra.run.dir={self.folder / name}", *overrides]
        return self.starter.start(arguments, self.folder / f"{name}.txt", variables=variables)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text(encoding="utf-8")

    def go_on_to_the_same_end(self, name: str) -> None:
        self.start(name)
        assert wait_for_end(self.starter, 60) == 0, self.said(name)
        assert differences(self.whole, self.folder / name) == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runs]:
    starter = WarmStart()
    yield Runs(starter, tmp_path_factory.mktemp("signals"))
    starter.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signal_and_leave(runs: Runs, name: str, pid: int, number: signal.Signals, seconds: float) -> None:
    """Send a signal as terminals and batch systems do, to all of the group, and see that all of it leaves in time."""
    started = time.monotonic()
    os.killpg(pid, number)
    assert wait_for_end(runs.starter, seconds) == CODES[number], runs.said(name)
    left = wait_for_group(pid, seconds=max(0.0, seconds - (time.monotonic() - started)))
    assert left == []
    assert temporary_files(runs.folder / name) == []
    assert "Traceback" not in runs.said(name)


def stop_in(runs: Runs, phase: str, number: signal.Signals, *, limit: float = PATIENCE) -> None:
    place, seconds, once, workers, has_begun = PHASES[phase]
    name = f"{phase}_{number.name}".replace(" ", "_")
    mark = runs.folder / f"{name}.mark"
    variables = {"SLOW_AT": place, "SLOW_MARK": str(mark), "SLOW_SECONDS": str(seconds)} | (
        {"SLOW_ONCE": "1"} if once else {}
    )
    pid = runs.start(name, f"data.num_workers={workers}", **variables)
    wait_for(lambda: mark.exists() or runs.starter.status() is not None)
    time.sleep(0.2)
    signal_and_leave(runs, name, pid, number, limit + (0 if phase in ORDERS else seconds))
    assert (runs.folder / name / "checkpoints" / "last.pt").exists() == has_begun
    runs.go_on_to_the_same_end(name)


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("assembly", signal.SIGTERM),
        ("step", signal.SIGUSR1),
        ("step", signal.SIGXCPU),
        ("reading in workers", signal.SIGHUP),
        ("evaluation", signal.SIGTERM),
        ("report", signal.SIGINT),
    ],
)
def test_a_signal_ends_the_run_and_it_goes_on_later(runs, phase, number):
    stop_in(runs, phase, number)


def test_a_lost_terminal_ends_the_run_saved(tmp_path):
    """Every write to the terminal is an error from then on; the live bar must not turn that into a traceback."""
    ours, theirs = pty.openpty()
    mark = tmp_path / "mark"
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cvtrain", *SETTINGS, "trainer.progress=true", "trainer.epochs=50"),
            *("trainer.eval_every_epochs=50", f"hydra.run.dir={run_dir}"),
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"SLOW_AT": "step", "SLOW_MARK": str(mark), "SLOW_SECONDS": "0.05", "TERM": "xterm"},
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    reader = threading.Thread(target=_read_until_closed, args=(ours, mark))
    reader.start()
    reader.join(60)  # closes the terminal
    assert process.wait(90) == 129
    assert json.loads((run_dir / "summary.json").read_text())["end_reason"] == "interrupted"
    assert load_checkpoint(run_dir / "checkpoints" / "last.pt")["position"]["step"] > 0


def _read_until_closed(terminal: int, mark: Path) -> None:
    seen_at = None
    while seen_at is None or time.monotonic() < seen_at + 1:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)
        if seen_at is None and mark.exists():
            seen_at = time.monotonic()
    os.close(terminal)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("phase", PHASES)
def test_every_signal_in_every_phase(runs, phase, number):
    stop_in(runs, phase, number, limit=SECONDS_TO_LEAVE)


class SilentServer(WandbServer):
    """Takes requests, and does not answer those in `silent_about`: operations, or `stream` for a run's figures."""

    def __init__(self, silent_about: str) -> None:
        super().__init__()
        self.silent_about = silent_about
        self.asked = threading.Event()
        self.released = threading.Event()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        self._wait_if(operation == self.silent_about)
        return super().answer(operation, variables)

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        self._wait_if(self.silent_about == "stream")
        return super().stream(run_id, body)

    def _wait_if(self, is_silent: bool) -> None:
        if is_silent:
            self.asked.set()
            self.released.wait(120)


@pytest.fixture
def silent_server(request) -> Iterator[SilentServer]:
    server = SilentServer(request.param)
    yield server
    server.released.set()
    server.close()


def processes_with(variable: str) -> list[int]:
    """Processes that were started with `variable` (NAME=value) in their environment, W&B's own service among them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def stop_while_waiting(
    runs: Runs, server: SilentServer, number: signal.Signals, *, in_step: bool = False, limit: float = PATIENCE
) -> None:
    name = f"wandb_{server.silent_about}_{number.name}{'_step' if in_step else ''}"
    mark = runs.folder / f"{name}.mark"
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": API_KEY, "WANDB_ERROR_REPORTING": "false"}
    if in_step:
        variables |= {"SLOW_AT": "step", "SLOW_MARK": str(mark), "SLOW_SECONDS": "0.2"}
    pid = runs.start(name, "logger=wandb", **variables)
    if in_step:
        wait_for(lambda: mark.exists() and server.asked.is_set())
    elif server.silent_about == "UpsertBucket":
        wait_for(server.asked.is_set)
    else:
        wait_for((runs.folder / name / "summary.json").exists)
        time.sleep(0.7)  # pictures of the report
    time.sleep(0.3)
    started = time.monotonic()
    os.kill(pid, number)
    assert wait_for_end(runs.starter, 40) in (CODES[number], -number), runs.said(name)
    assert time.monotonic() - started < limit + (0.2 if in_step else 0)
    assert wait_for_group(pid, seconds=PATIENCE) == []
    assert temporary_files(runs.folder / name) == []
    if limit == PATIENCE:
        server.released.set()
    # The client's service, a process of W&B's own, gives its last request up by its own clock.
    wait_for(lambda: not processes_with(f"WANDB_BASE_URL={server.url}"))
    runs.go_on_to_the_same_end(name)


@pytest.mark.parametrize("silent_server", ["UpsertBucket"], indirect=True)
def test_a_signal_ends_the_wait_for_a_server(runs, silent_server):
    stop_while_waiting(runs, silent_server, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("silent_server", "in_step"),
    [("UpsertBucket", False), ("stream", False), ("stream", True)],
    indirect=["silent_server"],
)
def test_every_signal_ends_the_wait_for_a_server(runs, silent_server, in_step, number):
    stop_while_waiting(runs, silent_server, number, in_step=in_step, limit=SECONDS_TO_LEAVE)


def test_a_killed_worker_ends_the_run_with_a_checkpoint_and_an_explanation(runs):
    name, mark = "killed_worker", runs.folder / "killed_worker.mark"
    variables = {"SLOW_AT": "step", "SLOW_MARK": str(mark), "SLOW_SECONDS": "0.3"}
    pid = runs.start(name, "data.num_workers=2", **variables)
    wait_for(lambda: mark.exists() or runs.starter.status() is not None)
    time.sleep(0.8)
    workers = [int(member.split()[0]) for member in group_members(pid) if int(member.split()[0]) != pid]
    os.kill(workers[0], signal.SIGKILL)
    assert wait_for_end(runs.starter, 60) == 1, runs.said(name)
    assert "a data worker was killed by the system (SIGKILL)" in runs.said(name)
    assert "data.num_workers (now 2;" in runs.said(name)
    assert "Traceback" not in runs.said(name)
    assert wait_for_group(pid, seconds=PATIENCE) == []
    assert load_checkpoint(runs.folder / name / "checkpoints" / "last.pt")["position"]["step"] > 0
    runs.go_on_to_the_same_end(name)
