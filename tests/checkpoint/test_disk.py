"""Real disks that are full or read-only, and processes that are killed while they write."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made_checkpoints import make_state, names_in

from cvtrain.checkpoint import CheckpointStore, latest_checkpoint, load_checkpoint, save_checkpoint
from cvtrain.checkpoint.store import numbered_checkpoints


def mount(folder, *options):
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not mount(folder, "size=1m"):
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def save(checkpoints, step, *names, size=6):
    checkpoints.save(make_state(step, size=size), names=names or ("last.pt",))
    checkpoints.wait()


def test_full_disk(small_disk, caplog):
    folder = small_disk / "checkpoints"
    checkpoints = CheckpointStore(folder, keep_last=1)
    save(checkpoints, 1, "last.pt", "best.pt")
    save(checkpoints, 2)
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    for step in (3, 4):
        save(checkpoints, step, "last.pt", "best.pt", size=100_000)  # 1.6 MB
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == before
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{folder / 'best.pt'} could not be saved: No space left on device" in warning
    assert "free some space on that disk" in warning
    assert latest_checkpoint(folder)[1]["position"]["step"] == 2
    save(checkpoints, 5, "last.pt", "best.pt")
    assert checkpoints.failure is None
    assert latest_checkpoint(folder)[1]["position"]["step"] == 5


def test_disk_that_fills_up_at_any_byte(small_disk):
    """However much space is left, there is the old file or the new one, and nothing else."""
    save_checkpoint(small_disk / "last.pt", make_state(1))
    size = (small_disk / "last.pt").stat().st_size
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    saved = 0
    for left in range(0, 3 * size, 4096):
        (small_disk / "filling").write_bytes(bytes(free - left))
        try:
            save_checkpoint(small_disk / "last.pt", make_state(2 + left, size=size // 40))
            saved += 1
        except OSError as error:
            assert error.strerror == "No space left on device"
        (small_disk / "filling").unlink()
        assert names_in(small_disk) == ["last.pt"]
        assert load_checkpoint(small_disk / "last.pt")["position"]["step"] in (1, 2 + left)
    assert 0 < saved < 3 * size / 4096


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_limit_on_the_size_of_files(tmp_path, caplog):
    """What stands in for a quota where nobody may mount: the system refuses to write beyond 20 kB."""
    import resource

    checkpoints = CheckpointStore(tmp_path)
    save(checkpoints, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        save(checkpoints, 2, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be saved: File too large" in caplog.text
    assert names_in(tmp_path) == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["position"]["step"] == 1
    save(checkpoints, 3, size=10_000)
    assert load_checkpoint(tmp_path / "last.pt")["position"]["step"] == 3


def test_read_only_disk(small_disk, caplog):
    checkpoints = CheckpointStore(small_disk, keep_last=1)
    save(checkpoints, 1)
    assert mount(small_disk, "remount", "ro")
    for step in (2, 3):
        save(checkpoints, step, "last.pt", "best.pt")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "could not be saved: Read-only file system" in warning
    assert "mount it for writing" in warning
    assert CheckpointStore(small_disk).close()  # even a start there is no error
    assert mount(small_disk, "remount", "rw")
    save(checkpoints, 4)
    assert names_in(small_disk) == ["best.pt", "last.pt", "step_00000001.pt"]
    steps = [load_checkpoint(small_disk / name)["position"]["step"] for name in names_in(small_disk)]
    assert steps == [3, 4, 1]


def test_read_only_folder(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    checkpoints = CheckpointStore(folder)
    save(checkpoints, 1)
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write to any folder")
        save(checkpoints, 2)
        assert "Permission denied" in caplog.text and "give the run the right to write there" in caplog.text
        assert latest_checkpoint(folder)[1]["position"]["step"] == 1
    finally:
        folder.chmod(0o755)
    save(checkpoints, 3)
    assert latest_checkpoint(folder)[1]["position"]["step"] == 3


def test_a_file_in_the_place_of_the_folder(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("not a folder")
    checkpoints = CheckpointStore(tmp_path / "checkpoints")
    save(checkpoints, 1)
    assert "could not be saved: File exists" in caplog.text
    assert latest_checkpoint(tmp_path / "checkpoints") is None


HERE = str(Path(__file__).resolve().parents[1] / "support")
WRITER = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from made_checkpoints import make_state
from cvtrain.checkpoint import CheckpointStore, latest_checkpoint
folder = pathlib.Path(sys.argv[1])
found = latest_checkpoint(folder)
step = found[1]["position"]["step"] if found else 0
checkpoints = CheckpointStore(folder, keep_last=2)
checkpoints.save(make_state(step + 1))
checkpoints.wait()
print("ready", flush=True)
while True:
    step += 1
    checkpoints.save(make_state(step, size=50_000), names=("last.pt", "best.pt") if step % 3 == 0 else ("last.pt",))
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_killed_at_random_moments(tmp_path):
    """After each kill the newest checkpoint is whole and no older than before; the next start leaves no other file."""
    folder, chosen, before, leftovers = tmp_path / "checkpoints", random.Random(0), 0, 0
    command = [sys.executable, "-c", WRITER, str(folder), HERE]
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.3 * chosen.random())
            process.send_signal(signal.SIGKILL)
        leftovers += sum(name.endswith(".tmp") for name in names_in(folder))
        path, state, problems = latest_checkpoint(folder)
        step, weight = state["position"]["step"], state["model"]["weight"]
        assert (path.name, problems) == ("last.pt", [])
        assert torch.equal(weight, torch.full_like(weight, float(step)))
        assert step > before
        before = step
    CheckpointStore(folder)
    assert {"last.pt"} <= set(names_in(folder))
    # one more than is kept, if the kill fell between the new file and the removal of the oldest
    assert len(numbered_checkpoints(folder)) <= 3
    others = set(names_in(folder)) - {"last.pt", "best.pt"} - {path.name for _, path in numbered_checkpoints(folder)}
    assert not others
    assert leftovers > 0, "no kill fell into a write: the test shows nothing"


def test_the_end_of_the_interpreter_waits_for_what_is_being_written(tmp_path):
    program = WRITER.replace("while True:", "for _ in range(1):").replace("checkpoints.wait()", "step = 6")
    command = [sys.executable, "-c", program, str(tmp_path), HERE]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    assert load_checkpoint(tmp_path / "last.pt")["position"]["step"] == 7
