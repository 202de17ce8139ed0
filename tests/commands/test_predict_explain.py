"""`predict explain=true`: an overlay and a score for each image, and work that survives its command."""

import csv
import errno

import numpy as np
import pytest
from PIL import Image

import cvtrain as face
from cvtrain.commands import explain_images
from cvtrain.commands.merge import merge
from cvtrain.commands.predict import predict
from cvtrain.config.compose import compose_verb
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.report.prediction_table import read_rows

FOLDER = "predictions_explanations"


@pytest.fixture
def start(run, photos, tmp_path, monkeypatch):
    """`start("top_k=1", ...)` predicts and explains 8 photos in an empty folder."""
    monkeypatch.chdir(tmp_path)
    words = (
        f"checkpoint={run.best_checkpoint}",
        f"source={photos / 'ant' / '[2-9].jpg'}",
        "device=cpu",
        "data.num_workers=0",
    )

    def call(*overrides):
        return predict(compose_verb("predict", [*words, "explain=true", *overrides])[0])

    return call


def rows_of(name):
    with open(name, encoding="utf-8", newline="") as file:  # noqa: PTH123
        return list(csv.DictReader(file))


def overlays(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pictures_and_scores_are_those_of_the_classifier(run, photos, start, tmp_path):
    classifier = face.load(run.best_checkpoint, device="cpu")
    one = f"source={photos / 'ant' / '3.jpg'}"
    for method, source, number in (("occlusion", one, 1), ("gradcam", f"source={photos / 'ant' / '[2-9].jpg'}", 8)):
        start(f"explain_method={method}", "overwrite=true", "batch_size=1", source)
        rows = rows_of("predictions.csv")
        assert len(rows) == len(overlays(tmp_path / FOLDER)) == number
        for row in rows[:3]:
            found = classifier.explain(photos / "ant" / row["path"].rpartition("/")[2], method=method)
            assert (row["pred"], row["confidence"]) == (found.label, f"{found.prob:.6g}")
            drops = (found.deletion.hot_drop, found.deletion.random_drop)
            assert (float(row["hot_drop"]), float(row["random_drop"])) == pytest.approx(drops, abs=1e-5)
            assert row["meaningful"] == str(found.is_meaningful).lower()
            with Image.open(tmp_path / row["explanation"]) as picture:
                difference = np.asarray(picture).astype(int) - np.asarray(found.overlay())
                assert picture.size == (192, 192)  # 16 pixels, enlarged
                assert np.abs(difference).mean() < 8  # of JPEG
    assert rows[1]["explanation"] == f"{FOLDER}/0000001_3.jpg"


def test_a_stopped_command_goes_on(start, tmp_path, monkeypatch):
    start("batch_size=2", "rows_per_part=2", "output=whole.csv")
    write, num_written = explain_images.Overlays.write, 0

    def failing(self, *arguments):
        nonlocal num_written
        num_written += 1
        if num_written > 6:
            raise OSError(errno.ENOSPC, "No space left on device", "overlay.jpg")
        return write(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(explain_images.Overlays, "write", failing)
        with pytest.raises(RunError, match=r"overlay\.jpg could not be written: No space left.*\n.*resume=auto"):
            start("batch_size=2", "rows_per_part=2")
    (tmp_path / FOLDER / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="explain_method"):
        start("batch_size=2", "rows_per_part=2", "resume=auto", "explain_method=occlusion")
    start("batch_size=2", "rows_per_part=2", "resume=auto")
    whole = [{**row, "explanation": row["explanation"].replace("whole", "predictions")} for row in rows_of("whole.csv")]
    assert rows_of("predictions.csv") == whole
    (tmp_path / FOLDER / "notes.txt").unlink()
    assert overlays(tmp_path / FOLDER) == overlays(tmp_path / "whole_explanations")


def test_overlays_of_another_command_are_not_replaced_unasked(start, tmp_path, photos):
    start()
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(ConfigError, match=rf"explain=true: .*{FOLDER} is there already.*\n.*overwrite=true"):
        start()
    (tmp_path / FOLDER / "notes.txt").write_text("mine", encoding="utf-8")
    start("overwrite=true", f"source={photos / 'ant' / '3.jpg'}")
    assert sorted(overlays(tmp_path / FOLDER)) == ["0000000_3.jpg", "notes.txt"]


def test_unreadable_images_have_no_picture_in_any_format(start, tmp_path, photos):
    (tmp_path / "cut.jpg").write_bytes((photos / "ant" / "1.jpg").read_bytes()[:300])
    names = ["cut.jpg", str(photos / "ant" / "2.jpg"), "=evil.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    for suffix in ("csv", "jsonl", "parquet"):
        start("source=list.txt", f"output=out.{suffix}", "overwrite=true", "embeddings=true")
        first, second, third = read_rows(tmp_path / f"out.{suffix}")
        for row in (first, third):
            assert row["error"] and not any(row[key] for key in ("explanation", "hot_drop", "meaningful"))
        assert second["explanation"] == "out_explanations/0000001_2.jpg"
        assert second["meaningful"] in ({"true", "false"} if suffix == "csv" else {True, False})
        assert float(second["hot_drop"]) == pytest.approx(float(second["hot_drop"]))
    assert list(overlays(tmp_path / "out_explanations")) == ["0000001_2.jpg"]


def test_parts_merge(start, tmp_path):
    start("output=whole.csv", "batch_size=1")
    for number in (1, 2):
        start("output=out.csv", "batch_size=1", f"part={number}/2")
    merge(compose_verb("merge", ["output=out.csv"])[0])
    for row, whole in zip(rows_of("out.csv"), rows_of("whole.csv"), strict=True):
        assert (tmp_path / row["explanation"]).read_bytes() == (tmp_path / whole["explanation"]).read_bytes()
        assert row["hot_drop"] == whole["hot_drop"]


def test_method_without_explain_is_refused():
    with pytest.raises(ConfigError, match="explain_method=occlusion: has no effect without explain=true"):
        compose_verb("predict", ["checkpoint=x.pt", "source=.", "explain_method=occlusion"])
