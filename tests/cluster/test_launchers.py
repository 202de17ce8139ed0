"""Hydra's launchers for real: every trial trains in its folder, and one that fails stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = (
    "data.image_size=8",
    "data.batch_size=64",
    "data.num_workers=0",
    "trainer.epochs=1",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "plots=false",
    "hydra.sweep.dir=sweep",
)
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": (),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.max_calls=1"),
}


def start(folder: Path, launcher: str, *overrides: str) -> "subprocess.Popen[str]":
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "cvtrain", "--multirun", f"hydra/launcher={launcher}"),
            *(*LAUNCHERS[launcher], *SETTINGS, *overrides),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_trial_that_fails_stops_no_other(launcher, tmp_path):
    sweep = start(tmp_path, launcher, "model.hidden=[8],[100000000000],[4]")
    output, _ = sweep.communicate(timeout=500)
    assert sweep.returncode == 1, output
    folder = tmp_path / "sweep"
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["0", "1", "2", "multirun.yaml"]
    for trial in ("0", "2"):
        summary = json.loads((folder / trial / "summary.json").read_text())
        assert summary["end_reason"] == "all epochs done" and summary["epochs"] == 1
        assert "results in sweep/" in (folder / trial / "train.log").read_text()
    assert "trial 1 failed" in (folder / "1" / "train.log").read_text()
    assert "can't allocate memory" in output
    assert not (folder / "1" / "summary.json").exists()


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_ctrl_c_saves_and_the_same_command_goes_on(launcher, tmp_path):
    overrides = ("resume=auto", "trainer.epochs=300", "checkpoint.every_minutes=null", "seed=0,1")
    sweep = start(tmp_path, launcher, *overrides)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "sweep").glob("*/checkpoints/last.pt")):
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.2)
    os.killpg(sweep.pid, signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, output
    again = start(tmp_path, launcher, *overrides, "trainer.max_steps=40")
    output, _ = again.communicate(timeout=500)
    assert again.returncode == 0, output
    assert "resuming from sweep/" in output  # joblib kills some of its workers before they have saved
    for trial in ("0", "1"):
        assert (tmp_path / "sweep" / trial / "predictions_val.csv").exists()
