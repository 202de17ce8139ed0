"""The figures of seeds=N and folds=K."""

import csv
import io
import json

import numpy as np
import pytest
import yaml
from scipy import stats

from cvtrain.config.repeats import Repeats
from cvtrain.report.repeats import overlap_of, spread_of, write_repeats


def test_interval_is_that_of_students_t():
    values = [0.91, 0.93, 0.90, 0.94, 0.95]
    spread = spread_of(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (spread.runs, spread.mean, spread.std) == pytest.approx((5, np.mean(values), np.std(values, ddof=1)))
    assert (spread.low, spread.high) == pytest.approx((low, high), abs=1e-12)


def test_folds_share_their_training_images():
    values = [0.91, 0.93, 0.90, 0.94, 0.95]
    plain, folded = spread_of(values), spread_of(values, overlap=overlap_of(Repeats("folds", 5)))
    # sqrt(1/5 + 1/4) over sqrt(1/5)
    assert (folded.high - folded.mean) / (plain.high - plain.mean) == pytest.approx(1.5)
    assert overlap_of(Repeats("seeds", 5)) == 0


def test_interval_holds_the_mean_of_independent_runs_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    spreads = [spread_of(rng.normal(0.9, 0.01, 5).tolist()) for _ in range(2000)]
    assert np.mean([spread.low <= 0.9 <= spread.high for spread in spreads]) == pytest.approx(0.95, abs=0.015)


def test_a_single_run_has_no_interval():
    assert (spread_of([0.5]).mean, spread_of([0.5]).low) == (0.5, None)


def write_job(folder, number, *, overrides, accuracy=None, end="all epochs done"):
    (folder / str(number)).mkdir()
    (folder / str(number) / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if accuracy is not None:
        best = {"value": accuracy, "metrics": {"val/accuracy": accuracy, "test/accuracy": accuracy / 2}}
        summary = {"monitor": "val/accuracy", "best": best, "end_reason": end, "wall_seconds": 2.0}
        (folder / str(number) / "summary.json").write_text(json.dumps(summary))


def test_runs_are_summed_up(tmp_path):
    for number, (accuracy, end) in enumerate(
        [(0.8, "all epochs done"), (0.9, "all epochs done"), (0.1, "interrupted")]
    ):
        write_job(tmp_path, number, overrides=["trainer.epochs=2", f"seed={number}"], accuracy=accuracy, end=end)
    write_job(tmp_path, 3, overrides=["trainer.epochs=2", "seed=3"])
    lines = write_repeats(tmp_path, Repeats("seeds", 4))
    assert lines[0] == "2 of 4 runs (seeds=4)"
    half = stats.t.ppf(0.975, 1) * 0.05  # std 0.0707, over sqrt(2)
    assert lines[2].split() == ["val/accuracy", "0.8500", f"{0.85 - half:.4f}", "to", f"{0.85 + half:.4f}", "0.0707"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["repeated"], summary["count"]) == ("seeds", 4)
    (group,) = summary["groups"]
    assert (group["runs"], group["metrics"]["test/accuracy"]["mean"]) == (2, pytest.approx(0.425))
    rows = list(csv.reader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert rows[0] == ["run", "seed", "end", "seconds", "val/accuracy", "test/accuracy"]
    assert rows[1:3] == [
        ["0", "0", "all epochs done", "2.0", "0.8", "0.4"],
        ["1", "1", "all epochs done", "2.0", "0.9", "0.45"],
    ]
    assert rows[4] == ["3", "3", "failed", "", "", ""]


def test_settings_of_a_multirun_have_a_mean_each(tmp_path):
    for number in range(4):
        fold, lr = divmod(number, 2)
        overrides = [f"optimizer.lr={10**-lr}", f"data.fold='{fold}/2'", "model=mlp"]
        write_job(tmp_path, number, overrides=overrides, accuracy=0.5 + 0.1 * number)
    lines = write_repeats(tmp_path, Repeats("folds", 2))
    titles = [line for line in lines if line.startswith("2 of 2")]
    assert titles == ["2 of 2 runs (folds=2): optimizer.lr=1", "2 of 2 runs (folds=2): optimizer.lr=0.1"]
    groups = json.loads((tmp_path / "summary.json").read_text())["groups"]
    assert [group["metrics"]["val/accuracy"]["mean"] for group in groups] == pytest.approx([0.6, 0.7])
    rows = csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text()))
    assert [row["data.fold"] for row in rows] == ["0/2", "0/2", "1/2", "1/2"]


def test_nothing_has_run(tmp_path):
    assert write_repeats(tmp_path, Repeats("seeds", 2)) == []
