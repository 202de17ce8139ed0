"""`ImageFile`: many writers and readers, killed writers, changed bytes, cut files, full disks."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from cache_processes import fill, image, in_memory, on_disk, read_all

from cvtrain.data.cache import store as slots
from cvtrain.data.cache.store import LIMIT_REACHED, RECORD_BYTES, DamagedCacheError, ImageFile

FORK = multiprocessing.get_context("fork")


def run(context, function, *arguments):
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def test_images_come_back_as_they_were():
    store = in_memory(3)
    assert [store.get(index) for index in range(3)] == [None] * 3 and store.count() == 0
    for index in (2, 0):
        store.put(index, image(index))
    assert store.get(1) is None and store.count() == 2 == read_all(store)
    kept = store.get(0)
    assert kept.dtype == np.uint8 and not kept.flags.writeable
    before = store.num_bytes
    store.put(0, image(5))  # there is one already: nothing happens
    assert np.array_equal(store.get(0), image(0)) and store.num_bytes == before
    assert np.array_equal(kept, image(0))


def test_size_is_the_pixels_and_24_bytes_each():
    store = in_memory(100)
    empty = store.num_bytes
    fill(store, range(100))
    assert RECORD_BYTES == 24 and empty == 64 + 2400
    assert store.num_bytes == empty + sum(image(index).nbytes for index in range(100))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_processes_share_what_each_stores(tmp_path, method, kind):
    store = in_memory(60) if kind == "memory" else on_disk(tmp_path / "a.images", 60)
    context = multiprocessing.get_context(method)
    writers = [run(context, fill, store, range(part, 60, 3)) for part in (0, 1)]
    fill(store, range(2, 60, 3))
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert read_all(store) == store.count() == 60
    assert store.stopped == 0 and store.first_damaged is None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads what Linux tells of its memory")
def test_one_copy_of_the_pixels_for_all_processes():
    """The proportional share of memory (a shared page counts 1/n for each of n processes), summed over 4 of them."""
    shape = (1024, 1365, 3)
    size = 16 * 1024 * 1365 * 3  # 64 MiB
    store = in_memory(16)
    for index in range(16):
        store.put(index, np.full(shape, index, np.uint8))
    ready, done = FORK.Barrier(4), FORK.Event()

    def read() -> None:
        assert sum(int(store.get(index).max()) for index in range(16)) == 120
        ready.wait(30)
        done.wait(30)

    readers = [run(FORK, read) for _ in range(3)]
    before = share_of_shared_memory([os.getpid()])
    assert sum(int(store.get(index).max()) for index in range(16)) == 120
    ready.wait(30)
    total = share_of_shared_memory([os.getpid(), *(reader.pid for reader in readers)])
    done.set()
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0
    assert before < 0.3 * size
    assert 0.9 * size < total < 1.2 * size


def share_of_shared_memory(processes: list[int]) -> int:
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Shmem:"))
    return total


def test_writers_of_the_same_images_leave_whole_records(tmp_path):
    path = tmp_path / "a.images"
    store = on_disk(path, 1500)
    writers = [run(FORK, fill, store, range(1500)) for _ in range(4)]
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert read_all(on_disk(path)) == 1500 and store.first_damaged is None


@pytest.mark.parametrize("delay", [0.002, 0.005, 0.01, 0.02, 0.03])
def test_writers_killed_at_any_moment_leave_whole_images_or_none(tmp_path, delay):
    path = tmp_path / "a.images"
    store = on_disk(path, 4000)
    writers = [run(FORK, fill, store, range(4000)), run(FORK, fill, store, range(3999, -1, -1))]
    time.sleep(delay)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(30)
    again = on_disk(path)
    found = read_all(again)
    assert again.first_damaged is None and found == again.count()
    fill(again, range(0, 4000, 400))
    assert all(again.get(index) is not None for index in range(0, 4000, 400))


def test_a_writer_killed_with_the_lock_stops_nobody():
    store = in_memory(2)
    holding = FORK.Event()

    def hold() -> None:
        fcntl.lockf(store.file.descriptor, fcntl.LOCK_EX, 1, 0)
        holding.set()
        time.sleep(60)

    holder = run(FORK, hold)
    assert holding.wait(30)
    waiter = run(FORK, fill, store, range(2))
    waiter.join(0.2)
    assert waiter.is_alive()
    os.kill(holder.pid, signal.SIGKILL)
    waiter.join(10)
    assert waiter.exitcode == 0 and read_all(store) == 2


def test_changed_bytes_are_noticed_and_stored_anew(tmp_path):
    path = tmp_path / "a.images"
    fill(on_disk(path, 30), range(30))
    whole = path.read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).integers(64, len(whole), 150):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(place) % 8
        path.write_bytes(changed)
        store = on_disk(path)
        found = read_all(store)  # never other pixels
        assert found in (29, 30)
        noticed += 30 - found
        assert (store.first_damaged is not None) == (found == 29)
        fill(store, range(30))
        assert read_all(store) == 30 and read_all(on_disk(path)) == 30
    assert noticed == 150  # every byte behind the header counts


def test_a_file_cut_in_its_pixels_loses_only_what_is_gone(tmp_path):
    path = tmp_path / "a.images"
    fill(on_disk(path, 30), range(30))
    size = path.stat().st_size
    os.truncate(path, size - image(29).nbytes - image(28).nbytes - 1)
    store = on_disk(path)
    assert read_all(store) == 27 and store.first_damaged == 27
    fill(store, range(30))
    assert read_all(store) == 30 == read_all(on_disk(path))


def test_a_file_cut_in_its_index_or_with_a_changed_header_is_refused(tmp_path):
    path = tmp_path / "a.images"
    fill(on_disk(path, 30), range(30))
    whole = path.read_bytes()
    for length in (0, 5, 17, 64, 64 + 30 * RECORD_BYTES - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCacheError):
            on_disk(path)
    for place in range(16 + len('{"key": "a", "num_images": 30}')):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(DamagedCacheError):
            on_disk(path)
    path.write_bytes(whole)
    assert read_all(on_disk(path)) == 30


def test_a_half_written_record_is_no_image_and_no_damage(tmp_path):
    store = on_disk(tmp_path / "a.images", 2)
    fill(store, range(2))
    os.pwrite(store.file.descriptor, bytes(4), 64 + RECORD_BYTES - 4)  # as a writer begins
    os.pwrite(store.file.descriptor, b"\x07" * 9, 64)
    assert store.get(0) is None and store.first_damaged is None
    store.put(0, image(0))
    assert read_all(store) == 2


def test_no_more_than_the_capacity(tmp_path):
    for store in (in_memory(50, 8000), on_disk(tmp_path / "a.images", 50, 8000)):
        fill(store, range(50))
        sizes = np.cumsum([64 + 50 * RECORD_BYTES, *(image(index).nbytes for index in range(50))])
        fits = int((sizes[1:] <= 8000).sum())
        assert 0 < fits < 50
        assert store.stopped == LIMIT_REACHED and read_all(store) == fits and store.num_bytes == sizes[fits]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_write_stops_storing_and_loses_nothing(tmp_path, monkeypatch, number):
    store = on_disk(tmp_path / "a.images", 20)
    fill(store, range(10))
    written = []

    def fail(descriptor, data, offset):
        written.append(offset)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(slots.os, "pwrite", fail)
    fill(store, range(10, 20))
    assert len(written) == 1 and store.stopped == number
    monkeypatch.undo()
    assert read_all(store) == 10 == read_all(on_disk(tmp_path / "a.images"))


def test_some_of_the_disk_is_left_free(tmp_path):
    disk = os.statvfs(tmp_path)
    store = on_disk(tmp_path / "a.images", 5, min_free_bytes=disk.f_blocks * disk.f_frsize)
    fill(store, range(5))
    assert store.stopped == errno.ENOSPC and read_all(store) == 0


def test_a_disk_that_is_really_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            on_disk(small / "b.images", 40_000)
        (small / "b.images").unlink()
        store = on_disk(small / "a.images", 4000)
        fill(store, range(4000))
        assert store.stopped == errno.ENOSPC and 100 < read_all(store) < 4000
        del store
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_million_images_cost_25_bytes_each_in_memory():
    store = in_memory(1_000_000)
    store.put(999_999, image(3))
    assert np.array_equal(store.get(999_999), image(3)) and store.count() == 1
    assert store.num_bytes == 64 + 24_000_000 + image(3).nbytes
    assert isinstance(store, ImageFile) and len(store._verified) == 1_000_000
