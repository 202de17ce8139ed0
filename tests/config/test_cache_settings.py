"""Settings of the cache that have no effect are refused; which changes of them a resumed run may see."""

import pytest

from cvtrain.config.resume import compare_configs


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    return ["data=custom", "data.root=photos"]


@pytest.mark.parametrize(
    ("tokens", "keys"),
    [
        ([], []),
        (["data.cache=disk", "data.cache_dir=x", "data.cache_limit_gib=0.5"], []),
        (["data.cache=auto", "data.cache_dir=x", "data.cache_limit_gib=9"], []),
        (["data.cache=ram", "data.cache_limit_gib=1"], []),
        (["data.cache=ram", "data.cache_dir=x"], ["data.cache_dir"]),
        (["data.cache=none", "data.cache_dir=x", "data.cache_limit_gib=1"], ["data.cache_dir", "data.cache_limit_gib"]),
        (["data.cache=none", "data.cache_dir=null"], []),  # takes back what an experiment or a resumed run had set
        (["data.cache_limit_gib=0"], ["data.cache_limit_gib"]),
        (["data.cache=always"], ["data.cache"]),
    ],
)
def test_settings_without_effect(problems_of, photos, tokens, keys):
    assert [problem.key for problem in problems_of(*photos, *tokens)] == keys


def test_sets_that_lie_in_memory_need_no_cache(problems_of):
    (problem,) = problems_of("data=mnist", "data.cache=ram")
    assert problem.key == "data.cache" and "its images lie in memory anyway" in problem.rule
    assert [problem.key for problem in problems_of("data.cache=ram")] == ["data.cache"]  # digits have no files


def test_cache_dir_below_a_file(problems_of, photos, tmp_path):
    (tmp_path / "taken").touch()
    command = [*photos, "data.cache=disk"]
    assert [problem.key for problem in problems_of(*command, "data.cache_dir=taken/caches")] == ["data.cache_dir"]
    assert problems_of(*command, "data.cache_dir=photos/caches") == []


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("auto", "ram", "harmless"),
        ("disk", "auto", "harmless"),
        ("none", "ram", "training"),
        ("auto", "none", "training"),
        (None, "none", "harmless"),  # a checkpoint from before there was a cache
        (None, "auto", "training"),
    ],
)
def test_where_pixels_are_kept_changes_no_run_but_their_size_does(old, new, kind):
    saved = {"data": {"name": "custom"} | ({} if old is None else {"cache": old})}
    changes = compare_configs(
        saved, {"data": {"name": "custom", "cache": new, "cache_dir": "x", "cache_limit_gib": 1.0}}
    )
    where = ["data.cache_dir", "data.cache_limit_gib"]
    assert [change.key for change in changes.training] == (["data.cache"] if kind == "training" else [])
    assert [change.key for change in changes.harmless] == (["data.cache", *where] if kind == "harmless" else where)
    assert changes.breaking == ()
