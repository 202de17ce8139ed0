"""The listing of a large folder that is kept on disk: any change is seen, and nothing else is read."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from cvtrain.data.sources import scan_cache
from cvtrain.data.sources.folder import splits_of_folder
from cvtrain.data.sources.scan import ImageScanner
from cvtrain.data.sources.scan_cache import ScanCache, read_subject

EXTENSIONS = (".jpg",)


@pytest.fixture(autouse=True)
def small_listings(monkeypatch):
    monkeypatch.setattr(scan_cache, "MIN_IMAGES", 1)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    for name in ("ants/1.jpg", "ants/2.JPG", "ants/deep/3.jpg", "ants/notes.txt", "bees/4.jpg", "bees/größe.jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "bees" / "5.jpg").symlink_to(root / "ants" / "1.jpg")
    (root / "bees" / ".hidden.jpg").touch()
    (root / "bees" / "round").symlink_to(root / "bees")
    return root


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The clock of the scans runs hours ahead, so that no folder is too young to be trusted."""
    plain = time.time_ns
    monkeypatch.setattr(scan_cache.time, "time_ns", lambda: plain() + 10**13)


def scan(root: Path, folder: Path) -> tuple[list[str], tuple[str, ...], list[str]]:
    """Paths with their labels, what was left out, and the folders that were read."""
    cache = ScanCache(folder, str(root), EXTENSIONS)
    scanner = ImageScanner(str(root), EXTENSIONS, cache)
    names = scanner.list_folder("").folders
    tables = scanner.images_below(names)
    cache.keep(scanner)
    return [path for table in tables for path in table], scanner.left_out.lines(), sorted(scanner.read)


def test_the_second_scan_reads_no_folder_and_finds_the_same(root, tmp_path):
    first = scan(root, tmp_path / "cache")
    assert first[0] == ["ants/1.jpg", "ants/2.JPG", "ants/deep/3.jpg", "bees/4.jpg", "bees/5.jpg", "bees/größe.jpg"]
    assert first[1] == (
        "left out 1 (hidden): bees/.hidden.jpg",
        "left out 1 (link to a folder that it is in): bees/round",
        "left out 1 (not an image by its extension): ants/notes.txt",
    )
    assert first[2] == ["", "ants", "ants/deep", "bees"]
    second = scan(root, tmp_path / "cache")
    assert second == (first[0], first[1], [])


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (lambda root: (root / "ants" / "9.jpg").touch(), ["ants"]),
        (lambda root: (root / "ants" / "2.JPG").unlink(), ["ants"]),
        (lambda root: (root / "ants" / "deep" / "3.jpg").rename(root / "ants" / "deep" / "7.jpg"), ["ants/deep"]),
        (lambda root: (root / "wasps").mkdir(), ["", "wasps"]),
        (lambda root: (root / "ants" / "deep").rename(root / "bees" / "deep"), ["ants", "bees", "bees/deep"]),
        (lambda root: (root / "ants" / "notes.txt").rename(root / "ants" / "notes.jpg"), ["ants"]),
    ],
)
def test_a_change_is_seen_and_only_the_changed_folder_read(root, tmp_path, change, read):
    scan(root, tmp_path / "cache")
    change(root)
    expected = scan(root, tmp_path / "another")
    found = scan(root, tmp_path / "cache")
    assert found[:2] == expected[:2]
    assert found[2] == read
    assert scan(root, tmp_path / "cache") == (*expected[:2], [])


def test_a_folder_whose_time_was_put_back_is_read(root, tmp_path):
    scan(root, tmp_path / "cache")
    status = (root / "ants").stat()
    (root / "ants" / "9.jpg").touch()
    os.utime(root / "ants", ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync does
    assert "ants/9.jpg" in scan(root, tmp_path / "cache")[0]


def test_a_young_folder_is_read_again(root, tmp_path, monkeypatch):
    monkeypatch.setattr(scan_cache.time, "time_ns", lambda: max(p.stat().st_mtime_ns for p in root.rglob("*")) + 10**9)
    scan(root, tmp_path / "cache")
    assert scan(root, tmp_path / "cache")[2] == ["", "ants", "ants/deep", "bees"]


@pytest.mark.parametrize("damage", ["cut", "flip", "version", "empty", "folder"])
def test_a_damaged_listing_is_not_believed(root, tmp_path, damage, caplog):
    folder = tmp_path / "cache"
    expected = scan(root, folder)
    (path,) = folder.glob("*.scan")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-20] ^= 1
    if damage == "version":
        content[7] = 2
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"cut": content[:-5], "empty": b""}.get(damage, content))
    assert read_subject(path) == {}
    caplog.set_level(logging.INFO)
    assert scan(root, folder) == expected
    assert "cannot be used, so all folders are read" in caplog.text
    if damage != "folder":
        assert scan(root, folder)[2] == []


def test_a_folder_that_cannot_be_written_costs_a_line_in_the_log(root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    paths, _, read = scan(root, tmp_path / "file" / "cache")
    assert len(paths) == 6 and len(read) == 4
    assert "all folders are read again the next time" in caplog.text


def test_roots_and_extensions_are_told_apart(root, tmp_path):
    scan(root, tmp_path / "cache")
    other = ScanCache(tmp_path / "cache", str(root), (".png",))
    assert other.num_known == 0
    assert ScanCache(tmp_path / "cache", str(root / ".." / "photos"), EXTENSIONS).num_known == 4


def test_splits_are_the_same_with_and_without(root, tmp_path):
    def split(folder):
        return splits_of_folder(
            str(root), extensions=("jpg",), reader=None, val_fraction=0.4, split_seed=0, cache_folder=folder
        )

    plain, first, second = split(None), split(tmp_path / "cache"), split(tmp_path / "cache")
    for splits in (first, second):
        assert splits.left_out == plain.left_out and splits.classes == plain.classes
        for name, source in plain.parts().items():
            assert list(splits.parts()[name].paths) == list(source.paths)
            np.testing.assert_array_equal(splits.parts()[name].labels, source.labels)


def test_small_folders_leave_no_listing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(scan_cache, "MIN_IMAGES", 7)
    scan(root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_verb_lists_and_removes_listings(root, tmp_path, cvtrain):
    scan(root, tmp_path / "cache")
    answer = cvtrain("cache", f"cache_dir={tmp_path / 'cache'}")
    assert f"listing: 6 files in {root.resolve()}" in answer.out
    cvtrain("cache", f"cache_dir={tmp_path / 'cache'}", "clean=stale")
    assert list((tmp_path / "cache").glob("*.scan"))
    answer = cvtrain("cache", f"cache_dir={tmp_path / 'cache'}", "clean=all")
    assert "removed" in answer.out and not list((tmp_path / "cache").glob("*.scan"))
