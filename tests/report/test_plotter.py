"""Drawing in a process beside the training: the same pictures, in order, whatever becomes of that process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cvtrain.report.plots import plot_confusion, plot_images
from cvtrain.report.plotter import Plotter, PlottingProcess

COUNTS = np.array([[3, 1], [0, 4]])


@pytest.fixture
def plotter():
    plotter = PlottingProcess()
    yield plotter
    plotter.close()


def process_of(plotter: PlottingProcess) -> "subprocess.Popen[bytes]":
    assert plotter._process is not None
    return plotter._process


def test_the_pictures_are_those_that_are_drawn_here(plotter, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 300, 300), dtype=np.uint8)  # more than a pipe holds
    for where, drawer in (("here", Plotter()), ("there", plotter)):
        drawer.draw(plot_images, images, list("abcd"), tmp_path / where / "images.png")
        drawer.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / where / "confusion.png")
        drawer.finish()
    for name in ("images.png", "confusion.png"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_picture_that_fails_is_a_warning_and_the_next_one_is_drawn(where, plotter, tmp_path, caplog):
    drawer = Plotter() if where == "here" else plotter
    (tmp_path / "file").write_text("no folder")
    drawer.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "file" / "confusion.png")
    drawer.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "confusion.png")
    drawer.finish()
    assert (tmp_path / "confusion.png").exists()
    assert [record.getMessage().split(":")[:2] for record in caplog.records] == [
        ["a picture could not be drawn", " FileExistsError"]
    ]


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_killed_process_leaves_is_drawn_here(when, plotter, tmp_path):
    if when == "before":
        process_of(plotter).kill()
        process_of(plotter).wait()
    for name in ("a.png", "b.png"):
        plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / name)
    if when == "after" and plotter._process is not None:
        plotter._process.kill()
    plotter.finish()
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "c.png")
    plotter.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_without_a_process_it_draws_here(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_such_python"))
    plotter = PlottingProcess()
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").exists()
    plotter.finish()
    plotter.close()


def test_closing_ends_it_and_waits_for_nothing_that_hangs(plotter):
    process = process_of(plotter)
    plotter.draw(time.sleep, 60)
    began = time.monotonic()
    plotter.close()
    plotter.close()
    assert process.poll() == -signal.SIGKILL
    assert time.monotonic() - began < 20


def test_it_is_deaf_to_the_signals_of_a_job(plotter, tmp_path):
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "first.png")
    plotter.finish()  # it has begun by now
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        process_of(plotter).send_signal(number)
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "second.png")
    plotter.finish()
    assert process_of(plotter).poll() is None and (tmp_path / "second.png").exists()


def test_it_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import os, time; from cvtrain.report.plotter import PlottingProcess\n"
        "plotter = PlottingProcess(); print(plotter._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 30
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_what_is_printed_while_drawing_is_no_reply(plotter, tmp_path):
    plotter.draw(os.system, "echo noise")
    plotter.draw(print, "more noise")
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "confusion.png")
    plotter.finish()
    assert process_of(plotter).poll() is None and (tmp_path / "confusion.png").exists()


def test_the_process_loads_no_torch(plotter, tmp_path):
    listing = tmp_path / "modules"
    code = f"import sys; open({str(listing)!r}, 'w').write(' '.join(sys.modules))"
    plotter.draw(plot_confusion, COUNTS, ("ant", "bee"), tmp_path / "confusion.png")
    plotter.draw(exec, code)
    plotter.finish()
    loaded = listing.read_text().split()
    assert "matplotlib" in loaded and "torch" not in loaded and "hydra" not in loaded
