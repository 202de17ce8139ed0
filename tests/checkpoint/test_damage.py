"""Files cut, flipped, empty or not ours: each is refused by name, none by a traceback."""

import io
import random
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from made_checkpoints import make_state

from cvtrain.checkpoint import CheckpointError, inspect_checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, make_state(size=500))
    return path


def refusal(path, content):
    path.write_bytes(content)
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(path) in str(caught.value)
    return caught.value.rule


def test_cut_at_every_twentieth(checkpoint):
    content = checkpoint.read_bytes()
    rules = {refusal(checkpoint, content[: len(content) * twentieth // 20]) for twentieth in range(1, 20)}
    assert rules == {"is cut off or damaged: the checksum at its end is missing"}
    assert refusal(checkpoint, b"") == "is empty"


def test_cut_by_one_to_two_hundred_bytes(checkpoint):
    content = checkpoint.read_bytes()
    for missing in range(1, 200):
        refusal(checkpoint, content[:-missing])


def test_longer_or_shifted(checkpoint):
    content = checkpoint.read_bytes()
    for changed in (content + b"\0", b"\0" + content, content + content, content[:500] + content[501:]):
        refusal(checkpoint, changed)


def test_every_flipped_bit_is_refused(checkpoint):
    """200 random places and each byte of the footer; no bit of the file is without meaning."""
    content = checkpoint.read_bytes()
    chosen = random.Random(0)
    places = [chosen.randrange(len(content) * 8) for _ in range(200)]
    places += [8 * (len(content) - 1 - byte) + chosen.randrange(8) for byte in range(120)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        refusal(checkpoint, bytes(damaged))


def test_overwritten_blocks_are_refused(checkpoint):
    content = checkpoint.read_bytes()
    for start in range(0, len(content), 512):
        for filling in (b"\0", b"\xff"):
            block = filling * len(content[start : start + 512])
            if content[start : start + 512] != block:
                refusal(checkpoint, content[:start] + block + content[start + 512 :])


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def tar_of(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("storages")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", content)
    return buffer.getvalue()


WEIGHTS = {"conv1.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
FOREIGN = {
    "text": b"hello\n" * 99,
    "zeros": bytes(5000),
    "noise": random.Random(1).randbytes(5000),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "html": b"<!DOCTYPE html><html>404</html>",
    "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "state_dict": saved(WEIGHTS),
    "legacy_state_dict": saved(WEIGHTS, _use_new_zipfile_serialization=False),
    "timm": saved(
        {"epoch": 3, "arch": "resnet18", "state_dict": WEIGHTS, "optimizer": {}, "version": 2, "metric": 0.7}
    ),
    "lightning": saved({"pytorch-lightning_version": "2.4.0", "epoch": 3, "global_step": 9, "state_dict": WEIGHTS}),
    "whole_module": saved(torch.nn.Linear(2, 2)),
    "tar": tar_of(b"x" * 100),
    "zip": zip_of(b"x" * 1000),
    "empty_zip": b"PK\5\6" + bytes(18),
}


REFUSALS = ("is no checkpoint of cvtrain's", "holds compressed records", "holds more than tensors and plain values")


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(tmp_path, kind):
    rule = refusal(tmp_path / "last.pt", FOREIGN[kind])
    assert rule.startswith(REFUSALS)


def test_a_foreign_state_dict_names_the_setting_for_it(tmp_path):
    (tmp_path / "resnet.pth").write_bytes(FOREIGN["state_dict"])
    with pytest.raises(CheckpointError, match=r"model\.weights=PATH"):
        load_checkpoint(tmp_path / "resnet.pth")


def test_a_checkpoint_that_torch_saved_again_loads_with_a_warning(tmp_path, caplog):
    """Stripped of its optimizer, the EMA in the model's place, as an OrderedDict with parameters."""
    save_checkpoint(tmp_path / "last.pt", make_state() | {"ema": {"model": {"weight": torch.ones(2, 6)}}})
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["optimizer"]
    state["model"] = OrderedDict(weight=torch.nn.Parameter(state["ema"]["model"]["weight"]))
    torch.save(state, tmp_path / "stripped.pt")
    loaded = load_checkpoint(tmp_path / "stripped.pt")
    assert "stripped.pt has no checksum" in caplog.text
    assert torch.equal(loaded["model"]["weight"], torch.ones(2, 6)) and type(loaded["model"]["weight"]) is torch.Tensor
    assert type(loaded["model"]) is dict and "optimizer" not in loaded
