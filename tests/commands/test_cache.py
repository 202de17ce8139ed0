"""The verb `cache`: what it lists, what it removes, and what it leaves alone."""

import importlib.metadata
import os

import pytest

from cvtrain import __version__
from cvtrain.data.cache.folder import CacheFolder

VERSIONS = {name: importlib.metadata.version(name) for name in ("torch", "pillow")}


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return CacheFolder(tmp_path / "home" / "cvtrain")


def make(caches, key, root, used, **pixels):
    description = {
        "root": str(root),
        "split": "train",
        "form": {"resize": "resize_crop", "short_side": 256, "image_size": 224},
        "pixels": {"cvtrain": __version__, "versions": VERSIONS, **pixels},
    }
    caches.open(key, description, 7)
    os.utime(caches.path / f"{key}.lock", (used, used))


def keys(caches):
    return [entry.key for entry in caches.entries()]


def test_nothing_is_made_by_looking(cvtrain, caches, tmp_path):
    answer = cvtrain("cache")
    assert answer.status == 0 and answer.out == f"0 caches, 0.00 GiB, in {caches.path}\n"
    assert cvtrain("cache", "clean=all").out == f"removed 0 caches, 0.00 GiB, in {caches.path}\n"
    assert list(tmp_path.iterdir()) == []


def test_list(cvtrain, caches, tmp_path):
    make(caches, "a", tmp_path, 1e9)
    os.truncate(caches.path / "a.images", 3 << 28)
    lines = cvtrain("cache").out.splitlines()
    start, end = lines[0].split("  used ")
    assert start == f"    0.75 GiB  7 train images of {tmp_path}, resize_crop at 256 pixels" and end.endswith(
        " days ago"
    )
    assert lines[1:] == [f"1 cache, 0.75 GiB, in {caches.path}"]


def test_clean_stale_removes_what_no_run_can_use_again(cvtrain, caches, tmp_path):
    make(caches, "good", tmp_path, 1)
    make(caches, "moved", tmp_path / "gone", 2)
    make(caches, "old", tmp_path, 3, cvtrain="0.0.0")
    make(caches, "torch", tmp_path, 4, versions={**VERSIONS, "torch": "1.0"})
    make(caches, "damaged", tmp_path, 5)
    os.truncate(caches.path / "damaged.images", 30)
    out = cvtrain("cache").out
    for words in ("its images are gone", "of cvtrain 0.0.0", "of torch 1.0", "damaged: its header"):
        assert out.count(f"  stale: {words}") == 1
    assert cvtrain("cache", "clean=stale").out.endswith(f"removed 4 caches, 0.00 GiB, in {caches.path}\n")
    assert keys(caches) == ["good"]


def test_clean_all_leaves_what_is_in_use(cvtrain, caches, tmp_path):
    for key in ("a", "b", "c"):
        make(caches, key, tmp_path, 1)
    use = caches.open("b", {}, 7)
    out = cvtrain("cache", "clean=all").out
    assert out.startswith("in use, so it stays:     0.00 GiB  7 train images of ")
    assert out.endswith(f"removed 2 caches, 0.00 GiB, in {caches.path}\n")
    assert keys(caches) == ["b"]
    del use
    assert cvtrain("cache", "clean=all", f"cache_dir={caches.path}").status == 0
    assert sorted(path.name for path in caches.path.iterdir()) == ["folder.lock"]


def test_wrong_settings(cvtrain, tmp_path):
    answer = cvtrain("cache", "clean=some")
    assert answer.status == 2 and "clean=some: must be one of all, stale, or null" in answer.err
    assert cvtrain("cache", "clear=all").err.startswith("error: clear=all: no such setting\n  did you mean clean?")
    assert list(tmp_path.iterdir()) == []


def test_help_lists_its_settings(cvtrain):
    out = cvtrain("cache", "--help").out
    assert "clean=null" in out and "cache_dir=null" in out and "optimizer" not in out
