"""`predict`: a row for every image, the numbers of the run's evaluation, and work that survives its command."""

import csv
import errno
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile_images import BAD, MAX_PIXELS, hostile_files
from made_images import READERS
from two_classes import OPTIONS

import cvtrain as face
from cvtrain.checkpoint import load_checkpoint, save_checkpoint
from cvtrain.commands import predict as verb
from cvtrain.commands.merge import merge
from cvtrain.commands.predict import predict
from cvtrain.config.compose import compose_verb
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.report.prediction_table import read_rows


@pytest.fixture
def start(run, photos, tmp_path, monkeypatch):
    """`start("top_k=1", ...)` runs the verb on all photos, in an empty folder, and returns its result."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides):
        given = {word.partition("=")[0] for word in overrides}
        defaults = {"checkpoint": run.best_checkpoint, "source": photos, "device": "cpu", "data.num_workers": 0}
        words = [f"{key}={value}" for key, value in defaults.items() if key not in given]
        return predict(compose_verb("predict", [*words, *overrides])[0])

    return call


def rows_of(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_val_equal_the_runs_own_to_the_bit(run, photos, start, tmp_path, workers):
    expected = rows_of(run.run_dir / "predictions_val.csv")
    (photos / "val.txt").write_text("".join(f"{row['path']}\n" for row in expected), encoding="utf-8")
    result = start(f"source={photos / 'val.txt'}", f"data.num_workers={workers}")
    assert (result.num_images, result.num_errors, len(expected)) == (8, 0, 8)
    for row, own in zip(rows_of("predictions.csv"), expected, strict=True):
        assert [row[key] for key in ("path", "pred", "confidence")] == [
            own[key] for key in ("path", "pred", "confidence")
        ]
        assert {row["top1"]: row["top1_prob"], row["top2"]: row["top2_prob"]} == {
            "ant": own["prob_ant"],
            "bee": own["prob_bee"],
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv"]


def test_formats_hold_the_same_numbers(run, photos, start):
    start("output=sure.csv")
    middle = np.median([float(row["confidence"]) for row in rows_of("sure.csv")])
    for suffix in ("csv", "jsonl", "parquet"):
        start(f"output=out.{suffix}", "embeddings=true", "top_k=2", f"threshold={middle}")
    tables = [list(read_rows(Path(f"out.{suffix}"))) for suffix in ("csv", "jsonl", "parquet")]
    classifier = face.load(run.best_checkpoint, device="cpu")
    paths = [photos / row["path"] for row in tables[1]]
    embeddings, probs = classifier.embed(paths), [each.probs for each in classifier.predict(paths, top_k=2)]
    for number, (flat, line, record) in enumerate(zip(*tables, strict=True)):
        assert np.array_equal(np.float32(line["embedding"]), embeddings[number].numpy())
        assert np.array_equal(np.float32(line["probs"]), np.float32(probs[number]))
        assert json.loads(flat["embedding"]) == line["embedding"]
        assert np.array_equal(np.float32(record["embedding"]), np.float32(line["embedding"]))
        assert np.array_equal(np.float32(record["probs"]), np.float32(line["probs"]))
        assert flat["confidence"] == f"{line['confidence']:.6g}"
        for row in (line, record):
            assert row["pred"] == flat["pred"] == ("unsure" if line["confidence"] < middle else flat["top1"])
            assert (row["path"], row["classes"], row["error"]) == (flat["path"], [flat["top1"], flat["top2"]], None)
    assert sum(row["pred"] == "unsure" for row in tables[0]) == 20


@pytest.mark.parametrize("reader", READERS)
def test_unreadable_images_are_rows_and_change_no_other(photos, start, tmp_path, reader):
    damaged = [file for file in hostile_files(0, 200) if file.verdict == BAD and file.make is None][:30]
    (tmp_path / "some").mkdir()
    for file in damaged:
        file.write(tmp_path / "some")
    names = [file.name for file in damaged]
    good = [str(path) for path in sorted(photos.glob("*/*.jpg"))]
    mixed = [*good[:4], *(f"some/{name}" for name in names), *good[4:], "none.jpg", "some", "\x1b[2Jnone"]
    for name, paths in (("good.txt", good), ("mixed.txt", mixed)):
        (tmp_path / name).write_text("\n".join(paths), encoding="utf-8")
    options = (f"data.reader={reader}", f"data.max_image_pixels={MAX_PIXELS}", "batch_size=1")
    assert start("source=good.txt", "output=good.csv", *options).num_errors == 0
    result = start("source=mixed.txt", *options)
    assert (result.num_images, result.num_errors) == (40 + 33, 33)
    rows = rows_of("predictions.csv")
    assert [row["path"] for row in rows] == [*mixed[:-1], r"\x1b[2Jnone"]
    assert [row for row in rows if not row["error"]] == rows_of("good.csv")
    assert {(row["pred"], row["confidence"], row["top1"]) for row in rows if row["error"]} == {("", "", "")}


def test_sources_name_the_same_images(photos, start, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    names = [str(path) for path in sorted(Path().glob("*/*.jpg"))]
    table = tmp_path / "p.csv"
    (tmp_path / "list.csv").write_text("file;label\n" + "".join(f"{name};x\n" for name in names), encoding="utf-8")
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n\n".join(names), encoding="utf-8")
    sources = [
        (".", ()),
        ("**/*.jpg", ()),
        (tmp_path / "list.csv", ("path_column=file",)),
        (tmp_path / "list.txt", ()),
        ("-", ()),
    ]
    for source, more in sources:
        stdin = io.TextIOWrapper(io.BytesIO("\n".join(names).encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        start(f"source={source}", f"output={table}", "overwrite=true", *more)
        assert sorted(row["path"] for row in rows_of(table)) == names
    assert start("source=ant/3.jpg", f"output={table}", "overwrite=true").num_images == 1
    start(f"source={table}", f"output={tmp_path / 'q.csv'}")  # a table of predictions is a list, too
    assert [row["path"] for row in rows_of(tmp_path / "q.csv")] == ["ant/3.jpg"]


def test_parts_merge_to_the_table_of_one_command(start, tmp_path):
    start("batch_size=1", "output=whole.csv")
    for suffix in ("csv", "jsonl", "parquet"):
        start("batch_size=1", f"output=whole.{suffix}", "overwrite=true")
        sizes = [start("batch_size=1", f"output=p.{suffix}", f"part={i}/3").num_images for i in (1, 2)]
        config = compose_verb("merge", [f"output=p.{suffix}"])[0]
        with pytest.raises(ConfigError, match="1 of 3 parts are not finished: 3/3"):
            merge(config)
        sizes.append(start("batch_size=1", f"output=p.{suffix}", "part=3/3").num_images)
        assert merge(config) == sum(sizes) == 40 and min(sizes) > 0
        assert list(read_rows(Path(f"p.{suffix}"))) == list(read_rows(Path(f"whole.{suffix}")))
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = rows_of("p.2-of-3.csv")
    (tmp_path / "p.2-of-3.csv").write_text("path,row\n" + "".join(f"{r['path']},{r['row']}\n" for r in rows[1:]))
    with pytest.raises(ConfigError, match="different columns"):
        merge(compose_verb("merge", ["output=p.csv", "overwrite=true"])[0])
    lines = (tmp_path / "p.2-of-3.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "p.2-of-3.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RunError, match=rf"row {json.loads(lines[0])['row']} of the source is missing"):
        merge(compose_verb("merge", ["output=p.jsonl", "overwrite=true"])[0])


def stop_after(monkeypatch, num_parts, error):
    """Let the write of the part after `num_parts` fail, and everything after it."""
    write, names = verb.PartFiles.append, []

    def append(parts, rows):
        names.append(parts.num_parts)
        if len(names) > num_parts:
            raise error
        write(parts, rows)

    monkeypatch.setattr(verb.PartFiles, "append", append)


def test_full_disk_keeps_parts_and_resume_goes_on(start, tmp_path, monkeypatch):
    start("output=whole.csv", "rows_per_part=8")
    with monkeypatch.context() as patch:
        stop_after(patch, 2, OSError(errno.ENOSPC, "No space left on device", "somewhere"))
        with pytest.raises(RunError, match=r"somewhere could not be written: No space left.*\n.*resume=auto goes on"):
            start("rows_per_part=8")
    folder = tmp_path / "predictions.csv.parts"
    parts = [folder / f"part-{number:06d}.csv" for number in range(2)]
    assert sorted(folder.glob("part-*")) == parts
    with pytest.raises(ConfigError, match=r"a stopped command left its rows in .*parts\n.*resume=auto goes on"):
        start("rows_per_part=8")
    with pytest.raises(ConfigError, match="top_k=3: was 5 in the command"):
        start("rows_per_part=8", "resume=auto", "top_k=3")
    read, before = [], verb.FileSource.read
    monkeypatch.setattr(verb.FileSource, "read", lambda self, index: read.append(index) or before(self, index))
    start("rows_per_part=8", "resume=auto")
    assert read == list(range(16, 40))
    assert (tmp_path / "predictions.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.csv", "whole.csv"]


def test_resumed_command_keeps_its_images(photos, start, tmp_path, monkeypatch):
    mine = shutil.copytree(photos, tmp_path / "mine")
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            start("source=mine", "rows_per_part=8")
    shutil.copy(mine / "ant" / "0.jpg", mine / "ant" / "00.jpg")
    (mine / "bee" / "9.jpg").unlink()
    result = start("source=mine", "rows_per_part=8", "resume=auto")
    assert (result.num_images, result.num_errors) == (40, 1)
    assert rows_of("predictions.csv")[-1]["error"] == "cannot be opened: No such file or directory"


def test_sorted_images(photos, start, tmp_path):
    mine = shutil.copytree(photos, tmp_path / "mine")
    (mine / "ant" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    before = {path.relative_to(mine): path.read_bytes() for path in mine.rglob("*.jpg")}
    for _ in range(2):  # its own links, in the source, are not read
        assert start("source=mine", "overwrite=true", "sort_into=mine/sorted", "threshold=0.93").num_images == 41
    expected = {Path(row["pred"], row["path"]) for row in rows_of("predictions.csv") if row["pred"]}
    links = {path.relative_to(mine / "sorted"): path for path in (mine / "sorted").rglob("*.jpg")}
    assert set(links) == expected and len(links) == 40
    assert all(
        path.is_symlink() and path.read_bytes() == before[name.relative_to(name.parts[0])]
        for name, path in links.items()
    )
    shutil.rmtree(mine / "sorted")
    with pytest.raises(ConfigError, match=r"mode=move: takes the images away.*\n.*yes=true"):
        start("source=mine", "overwrite=true", "sort_into=out", "mode=move")
    start("source=mine", "overwrite=true", "sort_into=out", "mode=move", "yes=true", "threshold=0.93")
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.jpg")} == expected
    assert [path.name for path in mine.rglob("*.jpg")] == ["cut.jpg"]


def test_hostile_class_names_stay_inside(run, photos, start, tmp_path, caplog):
    state = load_checkpoint(run.best_checkpoint)
    state = {key: value for key, value in state.items() if key not in ("format", "format_version")}
    save_checkpoint(tmp_path / "hostile.pt", {**state, "classes": ["../../=out", "=cmd()\x1b[2J"]})
    start("checkpoint=hostile.pt", "sort_into=deep/er/sorted", "mode=copy")
    assert sorted(path.name for path in (tmp_path / "deep/er/sorted").iterdir()) == ["=cmd()_x1b[2J", "_.._=out"]
    assert {row["pred"] for row in rows_of("predictions.csv")} == {"../../=out", r"'=cmd()\x1b[2J"}
    assert not any(path.name.endswith("=out") for path in tmp_path.iterdir())


def test_bad_input_is_refused_before_work(run, photos, start, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("none\n")
    (tmp_path / "other.pt").write_bytes(b"PK\x03\x04 of another program")
    (tmp_path / "there.csv").write_text("mine")
    cases = [
        (["source=empty"], r"source=empty: has no images\n.*\.jpg"),
        (["source=nothing"], "source=nothing: no such file or folder"),
        (["source=*.png"], r"source=\*\.png: has no images"),
        (["checkpoint=other.pt"], r"other\.pt"),
        (["output=there.csv"], r"there\.csv is there already\n.*overwrite=true"),
        (["output=out.xlsx"], r"the format is unknown: a name ends in \.csv, \.jsonl, \.parquet"),
        (["part=0/4"], "part=0/4: must be i/n"),
        ([f"source={photos / 'ant'}", f"sort_into={photos}"], "lies in it: sorted images would be read as new ones"),
        (["yes=true"], "yes=true: has no effect without sort_into"),
        (["source=notes.csv"], "no such file"),
        (["data.num_workers=-1"], "data.num_workers=-1"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for overrides, words in cases:
        with pytest.raises(ConfigError, match=words):
            start(*overrides)
        assert sorted(tmp_path.rglob("*")) == before, overrides
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_parquet_without_pyarrow_names_the_command(start, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package pyarrow.*\n.*--extra parquet, or pip install pyarrow"):
        start("output=out.parquet")


def test_stranger_asks_for_code_or_much_memory_in_vain(run, photos, start, tmp_path):
    own = ("model=custom", "model.target=custom_networks.KnowsItsImages")
    options = [word for word in OPTIONS if not word.startswith("model=")]
    result = face.train(*own, *options, f"data.root={photos}", run_dir=tmp_path / "own")
    with pytest.raises(ConfigError, match=r"model\.target"):
        start(f"checkpoint={result.best_checkpoint}")
    named = (f"checkpoint={result.best_checkpoint}", "model.target=custom_networks.KnowsItsImages")
    assert start(*named, "embeddings=true", "output=own.jsonl").num_images == 40
    assert {len(row["embedding"]) for row in read_rows(tmp_path / "own.jsonl")} == {3 * 16 * 16}
    state = load_checkpoint(run.best_checkpoint)
    state = {key: value for key, value in state.items() if key not in ("format", "format_version")}
    state["preprocessing"]["image_size"] = 9000
    save_checkpoint(tmp_path / "large.pt", state)
    with pytest.raises(ConfigError, match=r"data\.image_size=9000: the checkpoint asks for more than 2048"):
        start("checkpoint=large.pt", "overwrite=true")


def test_command_line(run, photos, cvtrain, tmp_path):
    command = ("predict", f"checkpoint={run.best_checkpoint}", "device=cpu")
    answer = cvtrain(*command, f"source={photos}", "top_k=1")
    assert (answer.status, answer.err) == (0, "")
    assert "predictions in predictions.csv" in answer.out
    assert rows_of(tmp_path / "predictions.csv")[0].keys() == {"path", "pred", "confidence", "error"}
    (tmp_path / "list.txt").write_text("none.jpg\n")
    with pytest.raises(SystemExit) as request:
        cvtrain(*command, "source=list.txt", "output=bad.jsonl")
    assert request.value.code == 3
    assert json.loads((tmp_path / "bad.jsonl").read_text())["error"] == "cannot be opened: No such file or directory"
    assert "did you mean predict?" in cvtrain("predcit").err
    assert "cvtrain predict checkpoint=PATH" in cvtrain("--help").out
    assert "one row per image" in cvtrain("help", "predict").out


def test_verbs_without_a_run_folder_leave_the_working_folder_alone(run, cvtrain, tmp_path):
    shutil.copytree(run.run_dir, tmp_path, dirs_exist_ok=True)  # the working folder is a run's own
    before = sorted(tmp_path.rglob("*"))
    answers = [
        cvtrain("predict", "checkpoint=checkpoints/best.pt", "source=plots", "device=cpu"),
        cvtrain("merge", "output=none.csv"),
        cvtrain("cache", "cache_dir=none"),
    ]
    assert [answer.status for answer in answers] == [2, 2, 0]
    assert "source=plots" in answers[0].err and "output=none.csv: there are no parts" in answers[1].err
    assert sorted(tmp_path.rglob("*")) == before
