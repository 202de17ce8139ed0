"""One checkpoint file: atomic writes, a checksum, errors that name the file and the cause."""

import os
import stat
import zipfile

import pytest
import torch
from made_checkpoints import make_state, names_in, pickled, whole, write_sealed

from cvtrain.checkpoint import CheckpointError, inspect_checkpoint, load_checkpoint, save_checkpoint
from cvtrain.checkpoint import file as files
from cvtrain.runtime import files as atomic


def assert_same(first, second):
    """Equal to the bit, types and all."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def test_round_trip_is_equal_to_the_bit(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, make_state())
    loaded = load_checkpoint(path)
    assert (loaded.pop("format"), loaded.pop("format_version")) == ("cvtrain-checkpoint", 2)
    assert_same(loaded, make_state())
    assert names_in(path.parent) == ["last.pt"]


def test_every_kind_of_tensor_and_number_comes_back(tmp_path):
    plain = {
        "big": 2**64 - 1,
        "small": -(2**63),
        "half": 0.5,
        "inf": float("inf"),
        "none": None,
        "no": False,
        "é": "\n",
    }
    tensors = {
        str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int8,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
    }
    tensors["empty"] = torch.zeros(0, 3)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["channels_last"] = torch.arange(48.0).view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
    save_checkpoint(
        tmp_path / "a.pt", make_state() | {"model": tensors, "plain": plain, "nested": [[], {}, (), (1, "a")]}
    )
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert_same(loaded["model"], tensors)
    assert_same(loaded["plain"], plain)
    assert_same(loaded["nested"], [[], {}, (), (1, "a")])
    assert loaded["model"]["channels_last"].stride() == tensors["channels_last"].stride()


def test_plain_torch_and_zip_tools_read_it(tmp_path):
    save_checkpoint(tmp_path / "a.pt", make_state())
    assert torch.load(tmp_path / "a.pt", weights_only=True)["classes"] == ["ants", "bees"]
    assert torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)["model"]["count"] == 3
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"cvtrain-checkpoint blake2b-256 ")


def test_inspection_gives_the_plain_values_and_the_shapes(tmp_path):
    save_checkpoint(tmp_path / "a.pt", make_state(7))
    state = inspect_checkpoint(tmp_path / "a.pt")
    assert state["position"] == {"step": 7, "epoch": 0, "batch": 7}
    assert state["model"]["weight"].shape == (2, 6)


def test_same_state_same_bytes(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, make_state())
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "a.pt", make_state())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o640


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state())
    old = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, make_state(4))
    assert path.read_bytes() == old
    assert names_in(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("full_check", [True, False])
def test_a_file_damaged_by_the_disk_never_replaces_the_old_one(tmp_path, monkeypatch, full_check):
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state())
    old = path.read_bytes()
    name = "inspect_checkpoint" if full_check else "_check_content"
    plain_check = getattr(files, name)

    def damaging_disk(temporary):
        with temporary.open("r+b") as file:
            file.seek(500)
            byte = file.read(1)[0]
            file.seek(500)
            file.write(bytes([byte ^ 4]))
        return plain_check(temporary)

    monkeypatch.setattr(files, name, damaging_disk)
    with pytest.raises(CheckpointError, match="what was written is damaged"):
        files.write_snapshot(path, make_state(4), full_check=full_check)
    assert path.read_bytes() == old
    assert names_in(tmp_path) == ["last.pt"]


def test_a_second_name_is_the_same_file_or_a_copy(tmp_path, monkeypatch):
    source = tmp_path / "best.pt"
    save_checkpoint(source, make_state())
    for _ in range(2):  # the second time both names are one file already
        files.link_checkpoint(source, tmp_path / "last.pt")
    assert (tmp_path / "last.pt").samefile(source)

    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    files.link_checkpoint(source, tmp_path / "copy.pt")
    assert not (tmp_path / "copy.pt").samefile(source)
    assert (tmp_path / "copy.pt").read_bytes() == source.read_bytes()
    assert names_in(tmp_path) == ["best.pt", "copy.pt", "last.pt"]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope\.pt: there is no such file"):
        load_checkpoint(tmp_path / "nope.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_newer_format(tmp_path):
    path = write_sealed(tmp_path / "a.pt", pickled(whole(format_version=99)))
    with pytest.raises(CheckpointError, match="format version 99") as caught:
        load_checkpoint(path)
    assert "install a newer cvtrain" in str(caught.value)


def test_incomplete_state_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="lacks classes, preprocessing, model"):
        save_checkpoint(tmp_path / "a.pt", {"config": {}})
    assert names_in(tmp_path) == []


FALSE_ENTRIES = {
    "config": [1, {"a": {1: 2}}],
    "classes": [[], "ab", ["a", "a"], ["a", 1], {"a": 1}],
    "preprocessing": [
        {"mean": [float("nan")]},
        {"std": [float("inf")]},
        {"image_size": 10**9},
        {"image_size": 0},
        {"image_size": [8, True]},
        {"channels": 10**9},
        [],
    ],
    "model": [None, [], {"weight": 1}, {3: 4}],
    "average": [1, {"num_updates": 1}, {"model": {"weight": "x"}}],
    "position": [{}, {"step": -1, "epoch": 0, "batch": 0}, {"step": True, "epoch": 0, "batch": 0}, [1, 2, 3]],
    "optimizer": [{}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": [1]}],
    "elapsed_seconds": [-1.0, float("nan"), float("inf"), "1", None],
    "loggers": [[], None, {1: 2}],
    "scaler": [1],
}


@pytest.mark.parametrize("name", FALSE_ENTRIES)
def test_false_entries_are_named(tmp_path, name):
    for value in FALSE_ENTRIES[name]:
        path = write_sealed(tmp_path / "a.pt", pickled(whole(**{name: value})))
        with pytest.raises(CheckpointError, match=f"`{name}`"):
            load_checkpoint(path)
