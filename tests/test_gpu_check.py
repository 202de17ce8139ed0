"""scripts/gpu_check.sh goes through all its steps in tiny sizes on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dry_run_fills_the_table(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = [str(ROOT / "scripts" / "gpu_check.sh"), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in done.stdout.splitlines() if "|" in line}
    for step in ("make_images", "gpu_tests", "throughput", "cifar10_speed"):
        assert rows[step] == "done" or "collected" in rows[step]
    for arch in ("resnet18", "resnet50"):
        assert {f"{arch} held", f"{arch} folder", f"{arch} peak memory"} <= set(rows)
    assert "missing: nothing" in done.stdout
