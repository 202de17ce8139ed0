"""`CacheFolder`: making, sharing, evicting and repairing caches; what room there is; what a key depends on."""

import fcntl
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from cache_processes import fill, read_all
from made_images import encode, noise, write

from cvtrain.config.schema.data import DataCache
from cvtrain.data.cache import folder as folder_module
from cvtrain.data.cache.budget import choose, free_memory, memory_budget, split_budget
from cvtrain.data.cache.build import estimate_bytes
from cvtrain.data.cache.fingerprint import compute_fingerprint
from cvtrain.data.cache.folder import CacheFolder, default_folder
from cvtrain.data.cache.store import ImageFile
from cvtrain.data.images.reader import Reader, build_reader
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource, with_labels

MIB = 1 << 20


@pytest.fixture
def caches(tmp_path):
    return CacheFolder(tmp_path / "caches")


def make(caches: CacheFolder, key: str, size: int, used: float, *, subject: str = "", num_images: int = 3) -> Path:
    """A cache of `size` bytes that a run last used at `used`, in seconds since 1970."""
    caches.open(key, {"subject": subject}, num_images)  # what it returns is dropped: nobody uses it
    path = caches.path / f"{key}.images"
    os.truncate(path, size)
    os.utime(caches.path / f"{key}.lock", (used, used))
    return path


def keys(caches: CacheFolder) -> list[str]:
    return [entry.key for entry in caches.entries()]


def open_store(caches: CacheFolder, key: str, num_images: int) -> ImageFile:
    file, use = caches.open(key, {}, num_images)
    return ImageFile(file, channels=3, capacity=1 << 30, verify=True, use=use)


def test_a_second_opening_finds_what_the_first_stored(caches):
    first = open_store(caches, "a", 20)
    fill(first, range(0, 20, 2))
    second = open_store(caches, "a", 20)
    assert read_all(second) == 10
    fill(second, range(20))
    assert read_all(first) == 20
    assert sorted(path.name for path in caches.path.iterdir()) == ["a.images", "a.lock", "folder.lock"]
    (entry,) = caches.entries()
    assert (entry.key, entry.is_used, entry.damage) == ("a", True, "")
    assert entry.num_bytes == first.num_bytes and entry.description["num_images"] == 20
    del first, second
    assert not caches.entries()[0].is_used


def test_the_longest_unused_goes_first(caches):
    for key, used in (("b", 200), ("a", 300), ("c", 100)):
        make(caches, key, 10 * MIB, used)
    assert keys(caches) == ["c", "b", "a"]
    assert caches.make_room({"new": 10 * MIB}, [], 40 * MIB) == 10 * MIB  # fits beside all of them
    assert keys(caches) == ["c", "b", "a"]
    assert caches.make_room({"new": 10 * MIB}, [], 30 * MIB) == 10 * MIB
    assert keys(caches) == ["b", "a"]
    assert caches.make_room({"new": 5 * MIB, "newer": 6 * MIB}, [], 30 * MIB) == 20 * MIB
    assert keys(caches) == ["a"]
    assert caches.make_room({"new": 90 * MIB}, [], 30 * MIB) == 30 * MIB  # as much as there can be
    assert keys(caches) == []


def test_what_a_run_uses_or_needs_itself_stays(caches):
    make(caches, "own", 10 * MIB, 100)
    make(caches, "used", 10 * MIB, 200)
    make(caches, "unused", 10 * MIB, 300)
    use = caches.open("used", {}, 3)
    os.utime(caches.path / "used.lock", (200, 200))
    assert caches.room(["own"], 35 * MIB) == 25 * MIB
    assert caches.make_room({"own": 20 * MIB}, [], 35 * MIB) == 25 * MIB
    assert keys(caches) == ["own", "used"]
    assert [entry.key for entry in caches.remove(caches.entries())] == ["own"]
    del use
    assert [entry.key for entry in caches.remove(caches.entries())] == ["used"]


def test_caches_that_are_filled_at_the_same_time_keep_to_the_limit_together(caches):
    room = caches.make_room({"a": 30 * MIB}, [], 40 * MIB)
    assert room == 40 * MIB
    held = caches.open("a", {}, 3, 30 * MIB)  # and nothing is stored yet
    assert caches.room(["b"], 40 * MIB) == 10 * MIB
    assert caches.make_room({"b": 30 * MIB}, [], 40 * MIB) == 10 * MIB
    assert caches.make_room({"a": 30 * MIB}, [], 40 * MIB) == 40 * MIB  # a second run on the same images
    assert caches.most_room(40 * MIB) == 40 * MIB
    del held
    # Its run has ended before it was full: what is not there is nobody's.
    assert caches.make_room({"b": 30 * MIB}, [], 40 * MIB) > 39 * MIB


def test_what_is_promised_is_not_free_on_the_disk_either(caches, monkeypatch):
    monkeypatch.setattr(folder_module, "free_disk", lambda path: 50 * MIB)
    held = caches.open("a", {}, 3, 30 * MIB)
    assert caches.room(["b"], 1000 * MIB) == pytest.approx(20 * MIB, abs=1000)
    assert caches.make_room({"b": 30 * MIB}, [], 1000 * MIB) == pytest.approx(20 * MIB, abs=1000)
    del held


def test_nobody_comes_between_finding_room_and_taking_it(caches):
    with caches.exclusive():
        caches.make_room({"a": MIB}, [], 40 * MIB)
        with pytest.raises(BlockingIOError), (caches.path / "folder.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        caches.open("a", {}, 3, MIB)
        with pytest.raises(BlockingIOError), (caches.path / "folder.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_of_the_same_subject_is_outdated(caches, caplog):
    make(caches, "old", MIB, 100, subject="photos")
    make(caches, "other", MIB, 100, subject="birds")
    with caplog.at_level(logging.INFO):
        caches.make_room({"new": MIB}, ["photos"], 100 * MIB)
    assert keys(caches) == ["other"]
    assert "removed" in caplog.text and "files or libraries have changed" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"cvtimgs", b"x" * 4096])
def test_a_damaged_file_is_made_anew(caches, caplog, damage):
    fill(open_store(caches, "a", 20), range(20))
    path = caches.path / "a.images"
    path.write_bytes(damage)
    assert caches.entries()[0].damage
    with caplog.at_level(logging.WARNING):
        store = open_store(caches, "a", 20)
    assert len(caplog.records) == 1 and f"{path} is damaged and made anew" in caplog.text
    fill(store, range(20))
    assert read_all(open_store(caches, "a", 20)) == 20 and caches.entries()[0].damage == ""


def test_a_file_of_other_images_under_the_name_is_made_anew(caches):
    fill(open_store(caches, "a", 20), range(20))
    (caches.path / "a.images").rename(caches.path / "b.images")
    assert read_all(open_store(caches, "b", 7)) == 0


def test_the_default_limit_is_half_of_what_could_be_had(caches, monkeypatch):
    make(caches, "a", 10 * MIB, 100)
    monkeypatch.setattr(folder_module, "free_disk", lambda path: 50 * MIB)
    assert caches.room(["new"], None) == 30 * MIB
    assert caches.room(["a"], None) == 30 * MIB
    monkeypatch.setattr(folder_module, "free_disk", lambda path: 3 * MIB)
    assert caches.room(["a"], None) == int(6.5 * MIB)
    assert caches.room(["new"], 100 * MIB) == 13 * MIB


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "cvtrain"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "cvtrain"


# Room


def test_free_memory_is_the_least_of_machine_and_control_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "job" / "step").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/job/step\n")
    assert free_memory(proc, groups) == 8000 << 10
    for folder, limit, current in ((groups / "job", "5000000", "1500000"), (groups / "job" / "step", "max", "1000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    assert free_memory(proc, groups) == 5_000_000 - 1_500_000 + 400_000
    (proc / "self" / "cgroup").write_text("4:memory:/\n3:cpu:/\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("3000000")
    (groups / "memory" / "memory.usage_in_bytes").write_text("1000000")
    (groups / "memory" / "memory.stat").write_text("cache 1\ntotal_inactive_file 7\n")
    assert free_memory(proc, groups) == 2_000_007


def test_auto_takes_memory_then_disk_then_nothing():
    def kind(num_bytes):
        return choose(DataCache.auto, num_bytes=num_bytes, memory=100, disk_room=lambda: 200).kind.value

    assert [kind(size) for size in (0, 100, 101, 200, 201)] == ["ram", "ram", "disk", "disk", "none"]
    for wanted in (DataCache.ram, DataCache.disk):
        assert choose(wanted, num_bytes=999, memory=1, disk_room=lambda: 1).kind is wanted
    assert memory_budget(None, 1000) == 500 and memory_budget(700, 1000) == 700 and memory_budget(5000, 1000) == 900
    assert split_budget(90, [10, 20]) == [30, 60] and split_budget(90, [0, 0]) == [0, 0]


# Which cache belongs to which images


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(4):
        write(root, encode(noise(40, 60, seed=number), "PNG"), f"{number}.png")
        os.utime(root / f"{number}.png", ns=(10**18, 10**18))
    return FileSource(
        root=root,
        paths=PathTable.from_iterable(f"{number}.png" for number in range(4)),
        labels=np.zeros(4, np.int64),
        reader=build_reader(),
    )


def form(**changes):
    return build_eval_transform(**{"image_size": 24, "resize": "resize_crop", "crop_fraction": 0.75, **changes})


def with_reader(source, **settings):
    return FileSource(root=source.root, paths=source.paths, labels=source.labels, reader=build_reader(**settings))


def test_the_key_stays_where_pixels_do(source, tmp_path):
    key = compute_fingerprint(source, form()).key
    assert compute_fingerprint(with_labels(source, source.labels + 1), form()).key == key
    assert compute_fingerprint(source, form(crop_fraction=24 / 32)).key == key
    (tmp_path / "photos" / "new.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    linked = FileSource(root=tmp_path / "link", paths=source.paths, labels=source.labels, reader=source.reader)
    assert compute_fingerprint(linked, form()).key == key


def test_the_key_changes_with_the_files(source):
    first = compute_fingerprint(source, form())
    path = Path(source.path(2))
    content = path.read_bytes()
    seen = {first.key}
    for change in (
        lambda: os.utime(path, ns=(10**18, 10**18 + 1)),
        lambda: (
            path.write_bytes(bytes(reversed(content))),
            os.utime(path, ns=(10**18, 10**18 + 1)),
        ),  # size, mtime kept
        lambda: (path.write_bytes(content + b"x"), os.utime(path, ns=(10**18, 10**18))),
        lambda: path.unlink(),
        lambda: write(path.parent, encode(noise(41, 60), "PNG"), path.name),
    ):
        change()
        changed = compute_fingerprint(source, form())
        assert changed.key not in seen and changed.subject == first.subject
        seen.add(changed.key)


def test_the_key_changes_with_paths_form_and_reader(source, monkeypatch):
    prints = [
        compute_fingerprint(source, form()),
        compute_fingerprint(source.take(np.array([0, 1, 2])), form()),
        compute_fingerprint(source.take(np.array([1, 0, 2, 3])), form()),
        compute_fingerprint(source, form(crop_fraction=0.5)),
        compute_fingerprint(source, form(image_size=25, crop_fraction=25 / 32)),
        compute_fingerprint(source, form(resize="pad")),
        compute_fingerprint(source, form(resize="squash")),
        compute_fingerprint(with_reader(source, library="opencv"), form()),
        compute_fingerprint(with_reader(source, channels=1), form()),
        compute_fingerprint(with_reader(source, alpha_color=(0, 0, 0)), form()),
        compute_fingerprint(with_reader(source, max_image_pixels=100), form()),
    ]
    monkeypatch.setattr("cvtrain.data.cache.fingerprint.STORED_VERSION", -1)
    prints.append(compute_fingerprint(source, form()))
    assert len({fingerprint.key for fingerprint in prints}) == 12
    assert len({fingerprint.subject for fingerprint in prints}) == 7
    assert isinstance(source.reader, Reader)


def test_size_is_estimated_from_headers(source, tmp_path):
    assert estimate_bytes(source, form(), 3) == 4 * (32 * 48 * 3 + 24)
    assert estimate_bytes(source, form(image_size=100), 3) == 4 * (40 * 60 * 3 + 24)  # nothing is enlarged
    Path(source.path(1)).write_bytes(b"no image")
    Path(source.path(3)).unlink()
    assert estimate_bytes(source, form(resize="squash"), 1) == 4 * (24 * 24 + 24)
