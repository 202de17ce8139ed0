"""The page of a run: its figures, harmless names, bounded size, and words for what is incomplete or damaged."""

import json
import re
import time
import tracemalloc

import numpy as np
import pytest
from made_runs import write_run
from page_checker import EVIL, check_page
from sklearn.metrics import f1_score

from cvtrain.config.errors import ConfigError
from cvtrain.data.sources.source import ArraySource
from cvtrain.metrics import wilson_interval
from cvtrain.report.overlays import read_overlays, write_overlays
from cvtrain.report.run_facts import compute_facts, slice_by_folder
from cvtrain.report.run_page import write_run_page
from cvtrain.report.run_results import read_results
from cvtrain.runtime.lock import run_lock

LABELS = [0] * 6 + [1] * 4
PREDS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
CONFIDENCES = [0.9, 0.9, 0.8, 0.7, 0.95, 0.6, 0.9, 0.8, 0.7, 0.55]
BINS = [{"images": 10 if number == 14 else 0, "right": 7, "confidence": 9.5} for number in range(15)]


def page_of(folder, images="not here", **options):
    write_run_page(folder / "report.html", read_results(folder), images, **options)
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page, check_page(page)


def test_figures_are_those_of_the_predictions(tmp_path):
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES)
    page, words = page_of(folder)
    low, high = wilson_interval(7, 10)
    assert f"7 of 10 val images are right: 70.0 % , 95 % interval {100 * low:.1f} to {100 * high:.1f}." in words
    assert "Always answering ant would be right for 60.0 %." in words
    assert f"macro F1 {100 * f1_score(LABELS, PREDS, average='macro'):.1f} %" in words
    low, high = wilson_interval(4, 6)
    assert f"ant 6 66.7 % {100 * low:.1f} to {100 * high:.1f} 80.0 %" in words
    assert "The most frequent mistake is ant taken for bee, 2 times." in words
    assert "bee 0.95 labelled ant val/4.jpg" in words  # the most confident mistake comes first
    assert words.index("val/4.jpg") < words.index("val/5.jpg") < words.index("val/9.jpg")
    # Of the 7 images from 0.8 on, 6 are right; of the 9 from 0.6 on, 7.
    assert "90 % none" in words
    assert compute_facts(read_results(folder)).cuts[2][:2] == pytest.approx((0.6, 5 / 6))
    assert "Without pictures: not here." in words
    assert "loss of train and val" in page and "cvtrain seed=3" in words


def test_calibration_is_shown_without_and_with_the_temperature(tmp_path):
    calibration = {"temperature": 1.5, "error_before": 0.25, "error_after": 0.0625}
    calibration |= {"bins_before": BINS, "bins_after": BINS}
    _, words = page_of(write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES, calibration=calibration))
    assert "error 25.0 %" in words and "error 6.2 %" in words and "before the temperature" in words
    assert "The temperature is 1.5: probabilities are softmax(logits / 1.5)." in words
    assert "probabilities can be trusted" not in page_of(write_run(tmp_path / "old", LABELS, PREDS, CONFIDENCES))[1]


def test_names_are_harmless_and_images_are_found_by_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (10, 20, 20, 3), dtype=np.uint8)

    class Source(ArraySource):
        def name(self, index):
            return f"=val/{EVIL[:-5]}&{index}.jpg"

    source = Source(images=images, labels=np.array(LABELS), prefix="x")
    paths = [source.name(index) for index in range(10)]
    classes = (EVIL, "=1+1\n\"'>")
    config = {"name": EVIL, "seed": 1, "trainer": {EVIL: EVIL}}
    folder = write_run(
        tmp_path / "run", LABELS, PREDS, CONFIDENCES, classes=classes, paths=paths, config=config, time={
            "loop": {EVIL: {"seconds": 1.0, "share": 1.0}}, "bottleneck": EVIL
        }
    )  # fmt: skip
    write_findings(folder, paths[4], EVIL)
    page, words = page_of(folder, source)
    assert page.count("<img") == 3 + 3  # each mistake, and the two pairs
    assert words.count("<script>alert('x')") > 10
    assert "=1+1\\n\"'>" in words
    assert "check: label suspect: " in words


def test_heat_maps_stand_below_the_mistakes(tmp_path):
    images = np.zeros((10, 20, 20, 3), np.uint8)
    source = ArraySource(images=images, labels=np.array(LABELS), prefix="x")
    paths = [source.name(index) for index in range(10)]
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES, paths=paths)
    (folder / "plots").mkdir()
    kept = folder / "plots" / "mistakes_val.json"
    write_overlays(kept, [paths[4], "gone", "password.jpg"], [np.full((30, 30, 3), 255, np.uint8)] * 3)
    assert read_overlays(kept)["password.jpg"].min() > 250
    page, words = page_of(folder, source)
    assert page.count("<img") == 6 + 1 and page.count('alt="heat map of x[4]"') == 1
    assert "where the network saw what it answered" in words
    for damaged in ("{", "[]", '{"x[4]": 3}', '{"x[4]": "AAAA"}', '{"x[4]": "<b>"}'):
        kept.write_text(damaged, encoding="utf-8")
        assert page_of(folder, source)[0].count("<img") == 6


def write_findings(folder, path, detail, check="label_suspect"):
    from cvtrain.config.text import escape_formula

    rows = ["path,split,class,check,score,partner,partner_split,partner_class,detail"]
    quoted = ['"' + escape_formula(text).replace('"', '""') + '"' for text in (path, detail)]
    rows.append(f"{quoted[0]},val,a,{check},0.5,,,,{quoted[1]}")
    (folder / "findings.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_copies_that_check_or_the_run_found_are_said_first(tmp_path):
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES, data_warnings=[f"1 copy <b> {EVIL}"])
    assert "1 copy <b> <script>" in page_of(folder)[1]
    (tmp_path / "check").mkdir()
    write_findings(tmp_path / "check", "val/4.jpg", "near copy, in train", "leakage")
    words = page_of(folder, check=tmp_path / "check")[1]
    assert "too good: by cvtrain check, 1 val images have a copy in another split" in words
    assert "check: leakage: near copy, in train" in words
    assert "too good" not in page_of(folder)[1]


def test_test_split_is_kept_apart_from_val(tmp_path):
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES)
    write_run(folder, [0, 1, 1, 0], [0, 1, 0, 0], [0.9] * 4, split="test")
    assert "Of 4 test images 75.0 % are right" in page_of(folder)[1]
    assert read_results(folder, "test").split == "test"
    with pytest.raises(ConfigError, match=r"has no predictions_train\.csv\n  it has val and test"):
        read_results(folder, "train")


def test_folders_are_slices_and_class_folders_are_not(tmp_path):
    paths = [
        f"{'morning' if index % 2 else 'evening'}/{'ant' if index < 6 else 'bee'}/{index}.jpg" for index in range(10)
    ]
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES, paths=paths)
    found = {part.name: (part.count, part.accuracy.value) for part in slice_by_folder(read_results(folder))}
    assert found == {"evening": (5, 0.8), "morning": (5, 0.6)}
    plain = write_run(tmp_path / "plain", LABELS, PREDS, CONFIDENCES, paths=[path[8:] for path in paths])
    assert slice_by_folder(read_results(plain)) == []


def test_dark_images_that_fail_are_seen(tmp_path):
    rng = np.random.default_rng(0)
    levels = np.repeat([20, 80, 140, 200], 50)
    images = (levels[:, None, None, None] + rng.integers(0, 9, (200, 8, 8, 3))).astype(np.uint8)
    source = ArraySource(images=images, labels=np.zeros(200, np.int64), prefix="p")
    paths = [source.name(index) for index in range(200)]
    folder = write_run(tmp_path / "run", [0] * 200, [1] * 40 + [0] * 160, [0.9] * 200, paths=paths)
    words = page_of(folder, source)[1]
    low, high = wilson_interval(10, 50)
    assert f"50 20.0 % {100 * low:.1f} to {100 * high:.1f} lower than the whole" in words
    assert "size (megapixels)" not in words  # all are equal


@pytest.mark.parametrize(("count", "num_classes"), [(10_000, 10), (50_000, 10_000)])
def test_many_images_and_classes_stay_small(tmp_path, count, num_classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    preds = np.where(rng.random(count) < 0.7, labels, rng.integers(0, num_classes, count))
    classes = [f"class {number}" for number in range(num_classes)]
    folder = write_run(tmp_path / "run", labels, preds, rng.random(count), classes=classes)
    started = time.process_time()
    page_of(folder)
    assert time.process_time() - started < 12  # about 1 s and 4 s on a machine of one's own
    assert (folder / "report.html").stat().st_size < 300_000
    tracemalloc.start()
    compute_facts(read_results(folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20


def test_a_run_that_is_always_right_has_a_page(tmp_path):
    words = page_of(write_run(tmp_path / "run", [0, 1], [0, 1], [0.9, 0.8]))[1]
    assert "2 of 2 val images are right" in words and "No two classes were confused." in words
    assert "mistakes" not in words


def broken(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", "{", "summary.json is damaged"),
        ("summary.json", "[]", "it holds no mapping"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("overrides.yaml", "a: b", "it holds no list"),
        ("metrics.jsonl", "x\n", "not a JSON object"),
        ("metrics.jsonl", "{}\n", "a row has no step"),
        ("predictions_val.csv", "path,label\n", "it has no column pred"),
        ("predictions_val.csv", "path,label,pred,confidence\n", "it has no images"),
        ("predictions_val.csv", "path,label,pred,confidence\na,ant", "line 2 is cut"),
        ("predictions_val.csv", "path,label,pred,confidence\na,ant,wasp,0.5\n", "a class that per_class_val.csv lacks"),
        ("predictions_val.csv", "path,label,pred,confidence\na,ant,ant,much\n", "the confidence of a is no number"),
        ("predictions_val.csv", 'path,label,pred,confidence\n"a', "is cut"),
        ("per_class_val.csv", "", "it has no column class"),
    ],
)
def test_damage_is_named(tmp_path, name, content, words):
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES)
    broken(folder, name, content)
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_results(folder)


def test_runs_without_predictions_are_explained(tmp_path):
    folder = write_run(tmp_path / "run", LABELS, PREDS, CONFIDENCES)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.pt").touch()
    (folder / "predictions_val.csv").unlink()
    with pytest.raises(ConfigError, match=r"(?s)has no predictions_val\.csv.*cvtrain evaluate checkpoint="):
        read_results(folder)
    broken(folder, "summary.json", json.dumps({"end_reason": "interrupted"}))
    with pytest.raises(ConfigError, match=r"(?s)was interrupted, so it has no predictions yet.*cvtrain resume="):
        read_results(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"(?s)was killed, or failed, before it wrote its predictions"):
        read_results(folder)
    with run_lock(folder), pytest.raises(ConfigError, match="this run is still going, in process"):
        read_results(folder)
    with pytest.raises(ConfigError, match="no such folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a file, not a run folder"):
        read_results(folder / "config.yaml")
    with pytest.raises(ConfigError, match="is no run folder"):
        read_results(folder / "checkpoints")


def test_the_folder_of_all_runs_is_answered_with_the_newest(tmp_path):
    folder = write_run(tmp_path / "photos" / "newest", LABELS, PREDS, CONFIDENCES)
    with pytest.raises(ConfigError, match=f"did you mean its newest run, {folder}"):
        read_results(tmp_path / "photos")
