"""The run folder's name: unique, even among runs that start in the same second."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cvtrain.config.resolvers import new_run_dir


def test_run_dir_has_root_name_and_time(tmp_path):
    folder = Path(new_run_dir(str(tmp_path / "runs"), "mine"))
    assert folder.is_dir() and folder.parent == tmp_path / "runs" / "mine"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_dir(str(tmp_path), "same"), range(24)))
    assert len(set(folders)) == 24
    assert all(Path(folder).is_dir() for folder in folders)
    assert {re.sub(r"^[\d-]+_[\d-]+", "", Path(folder).name) for folder in folders} >= {"", "_2", "_3"}
