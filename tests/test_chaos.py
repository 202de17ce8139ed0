"""Real processes killed with SIGKILL at random moments, by the script that anyone can run."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "chaos.py"


def last_line(tmp_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--folder", str(tmp_path / "runs")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()  # nothing differs, so nothing is kept
    return done.stdout.splitlines()[-1]


def test_three_kills(tmp_path):
    line = last_line(tmp_path, "--runs", "1", "--kills", "3", "--epochs", "2", "--vary-workers", "--seed", "7")
    assert line == "3 of 3 equal to the bit"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "arguments", [(), ("--vary-workers", "--seed", "100"), ("--cold", "--runs", "2", "--kills", "6")]
)
def test_fifty_kills(tmp_path, arguments):
    kills = 6 if "--cold" in arguments else 50
    assert last_line(tmp_path, *arguments) == f"{kills} of {kills} equal to the bit"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_killed_predictions_lose_no_part_that_was_complete(suffix):
    command = [sys.executable, str(SCRIPT.with_name("chaos_predict.py")), "--kills=5", "--images=320"]
    result = subprocess.run([*command, f"--format={suffix}"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"5 kills; 0 lost more than a part; equal: True; left: ['table.{suffix}']" in result.stdout
