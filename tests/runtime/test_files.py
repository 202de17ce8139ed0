"""The old file or the whole new one."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvtrain.runtime.files import atomic_write, remove_temporary_files, temporary_path


def test_text_and_bytes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "a.txt") as file:
        file.write("é\n")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa9\n"
    with atomic_write(tmp_path / "b.bin", text=False) as file:
        file.write(b"\x00\xff")
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_old_file_is_in_place_when_the_new_one_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def look(temporary: Path) -> None:
        seen.append((path.read_text(), temporary.read_text()))

    with atomic_write(path, before_rename=look) as file:
        file.write("new")
    assert seen == [("old", "new")]

    def refuse(temporary: Path) -> None:
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"), atomic_write(path, before_rename=refuse) as file:
        file.write("newer")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    mine = temporary_path(tmp_path / "last.pt")
    own, token = f".{os.getpid()}.", mine.name.split(".")[-2]
    other_token = "0" * 8 if token != "0" * 8 else "1" * 8
    host = mine.name.split(".")[-4]
    dead = mine.name.replace(own, f".{dead_process()}.").replace(token, other_token)
    stale = {
        "dead": dead,
        "a process of the same number before this one": mine.name.replace(token, other_token),
        "untouched for two days": dead.replace(f".{host}.", ".elsewhere.").replace("last", "old"),
    }
    kept = {
        "mine": mine.name,
        "alive": mine.name.replace(own, f".{os.getppid()}.").replace(token, other_token),
        "on another machine": dead.replace(f".{host}.", ".elsewhere."),
        "not ours": ".last.pt.tmp",
        "not hidden": dead.removeprefix("."),
        "a real file": "last.pt",
    }
    for name in (*stale.values(), *kept.values()):
        (tmp_path / name).write_text("part")
    two_days_ago = time.time() - 2 * 86400
    os.utime(tmp_path / stale["untouched for two days"], (two_days_ago, two_days_ago))
    assert sorted(path.name for path in remove_temporary_files(tmp_path)) == sorted(stale.values())
    assert names(tmp_path) == sorted(kept.values())


def test_removing_from_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert remove_temporary_files(tmp_path / "missing") == []
