"""Damaged and hostile files: no crash, no wait, bounded memory; each is named, every good one used, by all readers."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_images import BAD, EITHER, GOOD, MAX_PIXELS, good_images, hostile_files
from made_images import READERS, encode, photo, write

from cvtrain.data.images import integrity
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.integrity import MAX_SCANS
from cvtrain.data.images.reader import build_reader
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links and the resource module")

MAX_GROWTH_MB = 600
MAX_SECONDS = 5  # of CPU time, per file


# ---------------------------------------------------------------- readers


def check_readers(tmp_path: Path, seed: int, count: int) -> dict[str, str]:
    """Read `count` files with all readers, check what must hold, and give the verdict on each file."""
    here = Path(__file__).resolve().parents[2] / "support"
    command = [sys.executable, str(here / "read_hostile.py"), str(seed), str(count), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert (done.returncode, done.stderr) == (0, "")  # no crash, no warning, no word from a C library
    result = json.loads(done.stdout)
    assert result["growth_mb"] < MAX_GROWTH_MB
    verdicts = {}
    for file in hostile_files(seed, count):
        outcomes = result["outcomes"][file.name]
        assert set(outcomes) == set(READERS)
        kinds = {kind for kind, _, _ in outcomes.values()}
        assert len(kinds) == 1, (file.name, outcomes)  # all readers judge alike
        assert all(text for _, text, _ in outcomes.values())
        assert max(seconds for _, _, seconds in outcomes.values()) < MAX_SECONDS, (file.name, outcomes)
        verdicts[file.name] = kinds.pop()
        assert file.verdict in (EITHER, verdicts[file.name]), (file.name, outcomes)
    return verdicts


def test_all_readers_survive_sixty_hostile_files_and_agree(tmp_path: Path) -> None:
    verdicts = check_readers(tmp_path, seed=0, count=60)
    assert len(verdicts) == 60 and 30 <= sum(verdict == "bad" for verdict in verdicts.values()) <= 55


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_readers_survive_hundreds_of_hostile_files_and_agree(tmp_path: Path, seed: int) -> None:
    verdicts = check_readers(tmp_path, seed=seed, count=400)
    assert len(verdicts) == 400 and 200 <= sum(verdict == "bad" for verdict in verdicts.values()) <= 330


def test_the_files_are_the_same_each_time_and_of_each_kind() -> None:
    first, again = ({file.name: file.data for file in hostile_files(3, 400)} for _ in range(2))
    assert first == again and len(first) == 400
    assert [file.name for file in hostile_files(3, 60)] != [file.name for file in hostile_files(4, 60)]
    verdicts = {file.verdict for file in hostile_files(3, 60)}
    assert verdicts == {BAD, GOOD, EITHER}
    kinds = {name.rsplit("_", 2)[-1] for name in first}
    assert kinds >= set(good_images())


@pytest.mark.parametrize("name", good_images())
def test_the_whole_files_are_good(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, good_images()[name], name)
    results = [build_reader(library=library)(path) for library in READERS]
    assert all(np.array_equal(result, results[0]) for result in results[1:])


def test_causes_say_what_is_wrong(tmp_path: Path) -> None:
    expected = {
        "zero.png": "damaged or cut off: the header of the PNG file cannot be read, or promises no pixels",
        "flat_baseline.jpg": "damaged or cut off: the header of the JPEG file cannot be read, or promises no pixels",
        "bomb_zeros.png": f"60000 x 60000 pixels are more than data.max_image_pixels={MAX_PIXELS}",
        "bomb_scans.jpg": f"more than {MAX_SCANS} scans in a JPEG, which would take very long to decode",
        "huge_sparse.jpg": "its 1,099,511,627,776 bytes are more than an image within data.max_image_pixels can need",
        "text.jpg": "not an image in a known format: the file starts with 'version http'",
        "pipe.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        "folder.jpg": "a folder, not a file",
        "loop.jpg": "cannot be opened: Too many levels of symbolic links",
        "dangling.jpg": "cannot be opened: No such file or directory",
        "missing.jpg": "cannot be opened: No such file or directory",
        "empty.jpg": "the file is empty (0 bytes)",
    }
    files = {file.name: file for file in hostile_files(0, 400)}
    for name, cause in expected.items():
        path = files[name].write(tmp_path)
        with pytest.raises(BadImageError) as caught:
            build_reader(max_image_pixels=MAX_PIXELS)(path)
        assert (caught.value.path, caught.value.cause) == (str(path), cause)


def test_a_file_of_markers_costs_no_more_than_its_size() -> None:
    """Its 0xFF bytes all look like the start of a marker."""
    data = b"\xff\xd8\xff" + b"\xff" * 3_000_000 + encode(photo(), "JPEG")[2:]
    # Fill bytes before a marker are allowed, and the picture behind them is whole.
    result = build_reader().decode(data, "a.jpg")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(result, build_reader().decode(encode(photo(), "JPEG"), "b.jpg"))  # type: ignore[attr-defined]


# ---------------------------------------------------------------- batches

SIZE = 16


def make_folder(folder: Path, seed: int, count: int) -> tuple[list[str], dict[str, str]]:
    """Hostile files with a good one after every third, by name; and the verdict on each."""
    names, verdicts = [], {}
    whole = list(good_images().items())
    for number, file in enumerate(hostile_files(seed, count)):
        file.write(folder)
        names.append(file.name)
        verdicts[file.name] = file.verdict
        if number % 3 == 0:
            name, data = whole[number // 3 % len(whole)]
            names.append(f"good_{number}_{name}")
            verdicts[names[-1]] = GOOD
            write(folder, data, names[-1])
    return names, verdicts


def make_loader(folder: Path, names: list[str], library: str, *, skip: bool, num_workers: int = 0) -> BatchLoader:
    source = FileSource(
        root=str(folder),
        paths=PathTable.from_iterable(names),
        labels=np.arange(len(names), dtype=np.int64) % 5,
        reader=build_reader(library=library, max_image_pixels=MAX_PIXELS),
    )
    dataset = BatchDataset(
        source=source,
        eval_transform=build_eval_transform(image_size=SIZE, resize="squash", crop_fraction=1.0),
        image_size=SIZE,
        channels=3,
        seed=0,
    )
    plan = EpochSampler(len(names), 8, seed=0, shuffle=False)
    return BatchLoader(dataset=dataset, plan=plan, num_workers=num_workers, skip_bad_images=skip)


@pytest.mark.parametrize("library", READERS)
def test_a_folder_of_hostile_files_is_read_to_its_end(tmp_path: Path, library: str) -> None:
    names, verdicts = make_folder(tmp_path, seed=5, count=60)
    loader = make_loader(tmp_path, names, library, skip=True, num_workers=2)
    batches = list(loader.epoch(0))
    loader.close()
    used = [names[index] for batch in batches for index in batch.indices.tolist()]
    bad = {image.name: image.cause for image in loader.bad_images.values()}
    assert len(used) == len(set(used)) and set(used) | set(bad) == set(names) and not set(used) & set(bad)
    assert {name for name, verdict in verdicts.items() if verdict == GOOD} <= set(used)
    assert {name for name, verdict in verdicts.items() if verdict == BAD} <= set(bad)
    assert all(bad.values()) and 30 <= len(bad) <= 55
    assert sum(len(batch.bad) for batch in batches) == len(bad)
    labels = {name: number % 5 for number, name in enumerate(names)}
    assert [label for batch in batches for label in batch.labels.tolist()] == [labels[name] for name in used]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_hostile_file_ends_the_run_by_name(tmp_path: Path, num_workers: int) -> None:
    names, verdicts = make_folder(tmp_path, seed=5, count=40)
    names.sort(key=lambda name: verdicts[name] != GOOD)  # all good ones, then the others
    first = next(number for number, name in enumerate(names) if verdicts[name] != GOOD)
    names[first:] = sorted(names[first:], key=lambda name: verdicts[name] != BAD)
    loader = make_loader(tmp_path, names, "pillow", skip=False, num_workers=num_workers)
    seen = []
    with pytest.raises(BadImageError) as caught:
        for batch in loader.epoch(0):
            seen += batch.indices.tolist()
    loader.close()
    assert seen == list(range(first - first % 8))
    assert (caught.value.index, caught.value.path) == (first, names[first])
    assert caught.value.cause and "data.on_bad_image=skip" in str(caught.value)


def replace_by_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("replace", "cause"),
    [
        (lambda path: None, "cannot be opened: No such file or directory"),
        (lambda path: path.write_bytes(b"garbage"), "not an image in a known format: the file starts with 'garbage'"),
        (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
        (Path.mkdir, "a folder, not a file"),
        (os.mkfifo, "not a regular file"),
        (replace_by_link_to_itself, "cannot be opened: Too many levels of symbolic links"),
    ],
    ids=["deleted", "garbage", "emptied", "folder", "pipe", "loop"],
)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "error"])
def test_a_file_that_goes_bad_during_training(
    tmp_path: Path, replace: Callable[[Path], object], cause: str, skip: bool
) -> None:
    names = [f"{number}.jpg" for number in range(24)]
    for name in names:
        write(tmp_path, encode(photo(), "JPEG"), name)
    loader = make_loader(tmp_path, names, "pillow", skip=skip, num_workers=2)
    assert sum(len(batch) for batch in loader.epoch(0)) == 24 and not loader.bad_images
    (tmp_path / "13.jpg").unlink()
    replace(tmp_path / "13.jpg")
    if skip:
        assert [len(batch) for batch in loader.epoch(1)] == [8, 7, 8]
        assert {index: (bad.name, bad.cause) for index, bad in loader.bad_images.items()} == {13: ("13.jpg", cause)}
        shutil.rmtree(tmp_path / "13.jpg") if (tmp_path / "13.jpg").is_dir() else (tmp_path / "13.jpg").unlink(True)
        write(tmp_path, encode(photo(), "JPEG"), "13.jpg")  # mended
        assert sum(len(batch) for batch in loader.epoch(2)) == 24
    else:
        with pytest.raises(BadImageError) as caught:
            list(loader.epoch(1))
        assert (caught.value.index, caught.value.path, caught.value.cause) == (13, "13.jpg", cause)
    loader.close()


# ---------------------------------------------------------------- disks that fail for a moment


class FailingDisk:
    """Stands in for `open`: fails `times` times with error `number`, then opens."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times, self.tries = number, times, 0

    def __call__(self, path: object, mode: str) -> object:
        self.tries += 1
        if self.tries <= self.times:
            raise OSError(self.number, os.strerror(self.number), str(path))
        return open(str(path), mode)  # noqa: PTH123


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept, without sleeping."""
    seconds: list[float] = []
    monkeypatch.setattr(integrity.time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN])
@pytest.mark.parametrize("times", [1, 2])
def test_a_disk_that_fails_for_a_moment_costs_nothing(
    tmp_path: Path, number: int, times: int, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    path = write(tmp_path, encode(photo(), "PNG"))
    monkeypatch.setattr(integrity, "open", FailingDisk(number, times), raising=False)
    np.testing.assert_array_equal(build_reader()(path), photo())
    assert waits == [0.1, 0.5][:times]


def test_a_disk_that_keeps_failing_makes_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    path = write(tmp_path, encode(photo(), "PNG"))
    disk = FailingDisk(errno.EIO, 99)
    monkeypatch.setattr(integrity, "open", disk, raising=False)
    with pytest.raises(BadImageError) as caught:
        build_reader()(path)
    assert caught.value.cause == "cannot be read, at 3 tries: Input/output error"
    assert (disk.tries, waits) == (3, [0.1, 0.5])


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_will_not_pass_is_not_waited_for(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    disk = FailingDisk(number, 99)
    monkeypatch.setattr(integrity, "open", disk, raising=False)
    with pytest.raises(BadImageError, match=f"cannot be opened: {os.strerror(number)}"):
        build_reader()(write(tmp_path, b"x"))
    assert (disk.tries, waits) == (1, [])


def test_too_little_memory_for_a_file_makes_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, mode: str) -> object:
        raise MemoryError

    monkeypatch.setattr(integrity, "open", refuse, raising=False)
    with pytest.raises(BadImageError, match="not enough memory to read it"):
        build_reader()(write(tmp_path, b"x"))
