"""Ranks that find different images stop at the start; so does a run that is resumed on other images."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CustomConfig
from cvtrain.data.sources import digest as digest_module
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.digest import DatasetDigest, check_splits_match, check_unchanged, dataset_digest
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup


class Two(ProcessGroup):
    """Rank 1, whose other, rank 0, has found `other`."""

    rank, world_size, node = 1, 2, "b"

    def __init__(self, other: Splits) -> None:
        self.other = other

    def all_gather(self, value):
        told = []

        class Listener(ProcessGroup):
            world_size = 2

            def all_gather(self, value):
                told.append(("a", value[1]))
                return told

        check_splits_match(dataset_digest(self.other), Listener())
        return [*told, value]


def splits(names: list[str], labels: list[int], root: str = "/data") -> Splits:
    def source(names: list[str], labels: list[int]) -> FileSource:
        return FileSource(
            root=root, paths=PathTable.from_strings(names), labels=np.array(labels, np.int64), reader=np.zeros
        )

    return Splits(source(names, labels), source(["v.png"], [0]), None, ("ant", "bee"))


SAME = (["a/1.png", "b/2.png"], [0, 1])


def test_the_same_files_in_another_folder_are_the_same():
    check_splits_match(dataset_digest(splits(*SAME)), SINGLE_PROCESS)
    check_splits_match(dataset_digest(splits(*SAME, root="/scratch")), Two(splits(*SAME)))


@pytest.mark.parametrize(
    ("names", "labels", "told"),
    [
        (["a/1.png"], [0], "rank 0 has 2 in split train, a rank on machine b has 1$"),
        (["a/1.png", "b/3.png"], [0, 1], "b has 2, others or in other classes"),
        (["a/1.png", "b/2.png"], [0, 0], "b has 2, others or in other classes"),
    ],
)
def test_what_differs_is_named(names, labels, told):
    with pytest.raises(ConfigError) as caught:
        check_splits_match(dataset_digest(splits(names, labels)), Two(splits(*SAME)))
    assert re.search(told, str(caught.value), re.MULTILINE), caught.value


def write_images(root: Path) -> None:
    for split, count in (("train", 12), ("val", 4)):
        for index in range(count):
            path = root / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(path)


def digest_of(root: Path) -> DatasetDigest:
    return dataset_digest(build_splits(CustomConfig(root=str(root))))


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "added": (lambda root: shutil.copy(root / "train/a/0.png", root / "train/a/9.png"), "12 images before, 13 now"),
    "removed": (lambda root: (root / "train/a/4.png").unlink(), "12 images before, 11 now"),
    "renamed": (rename("train/a/4.png", "train/a/40.png"), "12 images before, as many now, but other files"),
    "moved": (rename("train/a/4.png", "train/b/4.png"), "12 images before, as many now, but other files"),
    "replaced": (lambda root: noise(root / "train/a/4.png"), "12 images before, as many now, but other files"),
}


def noise(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_is_refused_within_an_epoch_and_warned_of_at_its_start(tmp_path, caplog, change):
    write_images(tmp_path)
    before = digest_of(tmp_path)
    check_unchanged(before, digest_of(tmp_path), is_within_epoch=True, allow_changed=False)
    act, words = CHANGES[change]
    act(tmp_path)
    now = digest_of(tmp_path)
    with pytest.raises(ConfigError, match=f"train: {words}(.|\n)*resume_on_changed_data=true"):
        check_unchanged(before, now, is_within_epoch=True, allow_changed=False)
    for settings in (
        {"is_within_epoch": False, "allow_changed": False},
        {"is_within_epoch": True, "allow_changed": True},
    ):
        caplog.clear()
        check_unchanged(before, now, **settings)
        assert f"(train: {words}" in caplog.text
    check_unchanged(None, now, is_within_epoch=True, allow_changed=False)  # a checkpoint of an older version


def replace_by_same_size(path: Path, keep_mtime: bool) -> None:
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)
    if keep_mtime:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


@pytest.mark.parametrize("keep_mtime", [False, True])
def test_file_of_the_same_size_is_refused_within_an_epoch(tmp_path, caplog, keep_mtime):
    write_images(tmp_path)
    before = digest_of(tmp_path)
    replace_by_same_size(tmp_path / "train/a/4.png", keep_mtime)
    now = digest_of(tmp_path)
    words = "train: 12 images before, the same names and sizes now, but other content"
    with pytest.raises(ConfigError, match=words):
        check_unchanged(before, now, is_within_epoch=True, allow_changed=False)
    check_unchanged(before, now, is_within_epoch=False, allow_changed=False)
    assert words in caplog.text


def test_file_of_the_same_size_outside_the_sample_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(digest_module, "_SAMPLED_FILES", 3)
    write_images(tmp_path)
    before = digest_of(tmp_path)
    replace_by_same_size(tmp_path / "train/a/2.png", keep_mtime=True)
    check_unchanged(before, digest_of(tmp_path), is_within_epoch=True, allow_changed=False)
    assert "image files of train have other times" in caplog.text and "the content of 3 of 12 are" in caplog.text


def test_a_copy_elsewhere_at_another_time_is_the_same_data(tmp_path, caplog):
    write_images(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    one, two = digest_of(tmp_path / "one"), digest_of(tmp_path / "two")
    check_splits_match(one, SINGLE_PROCESS)
    for split in ("train", "val"):
        assert {**one[split], "times": ""} == {**two[split], "times": ""}
    check_unchanged(one, two, is_within_epoch=True, allow_changed=False)
    assert caplog.text.count("image files of train and val have other times") == 1
    assert "the content of all 12 and all 4 are the same" in caplog.text


def test_a_run_keeps_the_digest_and_refuses_other_images(cvtrain, tmp_path):
    write_images(tmp_path / "photos")
    command = [
        *("data=folder", f"data.root={tmp_path / 'photos'}", "data.image_size=8", "data.batch_size=4", "augment=none"),
        *("model=mlp", "model.hidden=[4]", "plots=false", "trainer.device=cpu", "trainer.precision=fp32"),
        *("data.num_workers=0", f"hydra.run.dir={tmp_path / 'run'}"),
    ]
    assert cvtrain(*command, "trainer.max_steps=2").status == 0
    (tmp_path / "photos/train/a/4.png").unlink()
    resume = [f"resume={tmp_path / 'run'}", "trainer.max_steps=4"]
    refused = cvtrain(*command, *resume)
    assert refused.status == 2 and "train: 12 images before, 11 now" in refused.err
    assert cvtrain(*command, *resume, "resume_on_changed_data=true").status == 0
