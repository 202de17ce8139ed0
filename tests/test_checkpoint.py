"""checkpoint: atomic writes, safe reads, errors that name the file."""

import os
import pickle
import stat

import pytest
import torch

from cvtrain import atomic, checkpoint
from cvtrain.checkpoint import files

STATE = {
    "model": {"weight": torch.arange(6.0).view(2, 3)},
    "config": {"seed": 0},
    "classes": ["ants", "bees"],
    "preprocessing": {"mean": [0.5]},
}


def test_round_trip_is_equal_to_the_bit(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save_checkpoint(path, STATE)
    loaded = checkpoint.load_checkpoint(path)
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
    assert {key: loaded[key] for key in ("config", "classes", "preprocessing")} == {
        key: STATE[key] for key in ("config", "classes", "preprocessing")
    }
    assert os.listdir(path.parent) == ["last.pt"]


def test_plain_torch_reads_it_with_weights_only(tmp_path):
    checkpoint.save_checkpoint(tmp_path / "a.pt", STATE)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["classes"] == ["ants", "bees"]


def test_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save_checkpoint(tmp_path / "a.pt", STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.pt").stat().st_mode) == 0o640


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(path, STATE)
    old = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(path, STATE | {"seed": 1})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["last.pt"]


def test_missing_file(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no such file"):
        checkpoint.load_checkpoint(tmp_path / "nope.pt")


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "zeros"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "last.pt"
    checkpoint.save_checkpoint(path, STATE)
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello\n" * 9, "zeros": bytes(999)}[damage]
    )
    with pytest.raises(checkpoint.CheckpointError, match=r"last\.pt"):
        checkpoint.load_checkpoint(path)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"format": checkpoint.FORMAT, "model": Payload()}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(checkpoint.CheckpointError, match=name):
            checkpoint.load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_foreign_state_dict_names_the_setting_for_it(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.weights=PATH"):
        checkpoint.load_checkpoint(tmp_path / "resnet.pth")


def test_newer_format_and_incomplete(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    with pytest.raises(checkpoint.CheckpointError, match="lacks classes, preprocessing, model"):
        checkpoint.save_checkpoint(path, {"config": {}})
    monkeypatch.setattr(files, "FORMAT_VERSION", 99)
    checkpoint.save_checkpoint(path, STATE)
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="format version 99"):
        checkpoint.load_checkpoint(path)


def test_to_cpu_copies():
    weight = torch.ones(3)
    nested = {"a": [weight, {"b": (weight, 2)}]}
    copied = checkpoint.to_cpu(nested)
    weight.zero_()
    assert torch.equal(copied["a"][0], torch.ones(3))
    assert torch.equal(copied["a"][1]["b"][0], torch.ones(3))
    assert copied["a"][1]["b"][1] == 2


def test_inference_weights_prefers_the_average():
    assert checkpoint.inference_weights({"model": {"w": 1}, "average": None}) == {"w": 1}
    assert checkpoint.inference_weights({"model": {"w": 1}, "average": {"num_updates": 3, "model": {"w": 2}}}) == {"w": 2}
