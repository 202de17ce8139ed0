"""The run folder's name: unique, even among runs that start in the same second."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cvtrain.config.composer import Composer
from cvtrain.config.resolvers import CachedText, list_groups, new_run_dir
from cvtrain.config.schema.root import register_schemas


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


def test_texts_of_the_help_are_made_once_and_go_by_pickle():
    calls = []
    text = CachedText(lambda *words: calls.append(words) or f"made {len(words)}")
    assert [text(), text("a"), text(), text("a")] == ["made 0", "made 1", "made 0", "made 1"]
    assert calls == [(), ("a",)]
    register_schemas()
    groups = CachedText(partial(list_groups, Composer("train")))
    assert pickle.loads(pickle.dumps(groups))() == groups()
