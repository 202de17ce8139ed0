"""Runs side by side: the paired test, its words, and runs that cannot be compared."""

import numpy as np
import pytest
from made_runs import write_run
from page_checker import check_page

from cvtrain.report.comparison import describe_pair, names_of, pair_runs, write_comparison
from cvtrain.report.run_results import read_results


def run_with(tmp_path, name, right, paths=None, labels=None, **options):
    """A run of which the images where `right` is true are right."""
    right = np.asarray(right)
    labels = np.arange(len(right)) % 2 if labels is None else np.asarray(labels)
    folder = write_run(
        tmp_path / name, labels, np.where(right, labels, 1 - labels), [0.9] * len(right), paths=paths, **options
    )
    return read_results(folder)


def test_images_are_paired_by_name_whatever_their_order(tmp_path):
    right = np.array([True] * 150 + [False] * 50)
    better = right.copy()
    better[:5], better[150:162] = False, True
    order = np.random.default_rng(0).permutation(200)
    names = [f"{number}.jpg" for number in range(200)]
    first = run_with(tmp_path, "a", right, names)
    second = run_with(
        tmp_path, "b", better[order], [names[place] for place in order], labels=(np.arange(200) % 2)[order]
    )
    found = pair_runs(first, second)
    assert (sorted(found.won), sorted(found.lost)) == (list(range(150, 162)), list(range(5)))
    assert found.difference.value == 0.035
    assert found.p_value == pytest.approx(0.143463, abs=1e-6)  # of the binomial distribution with 17 throws
    assert describe_pair("A", "B", found) == (
        "B is 3.5 points above A, which may be chance, 95 % interval -0.6 to 7.6: 12 images only the better one has "
        "right, 5 only the other (exact McNemar test, p = 0.14)."
    )
    assert describe_pair("B", "A", pair_runs(second, first)) == describe_pair("A", "B", found)


def test_a_clear_difference_and_none(tmp_path):
    worse, better = (run_with(tmp_path, name, np.arange(100) < count) for name, count in (("a", 70), ("b", 90)))
    assert describe_pair("A", "B", pair_runs(worse, better)).startswith(
        "B is better than A by 20.0 points, 95 % interval 1"
    )
    assert describe_pair("A", "A2", pair_runs(worse, worse)).startswith("A2 and A are right equally often")


def test_other_images_and_other_labels_are_refused(tmp_path):
    first = run_with(tmp_path, "a", [True] * 4)
    fewer = run_with(tmp_path, "b", [True] * 3)
    assert "different images, 4 and 3 with 3 in common" in describe_pair("A", "B", pair_runs(first, fewer))
    other = run_with(tmp_path, "c", [True] * 4, labels=[1, 1, 0, 1])
    assert "1 of their images have another label" in pair_runs(first, other)


def test_page_of_several_runs(tmp_path):
    configs = [{"name": "run", "optimizer": {"lr": lr}, "seed": 1, "trainer": {}} for lr in (0.1, 0.2, 0.3)]
    runs = [
        run_with(tmp_path, name, np.arange(60) < count, config=config, wall_seconds=seconds)
        for name, count, config, seconds in zip("abc", (40, 50, 50), configs, (5, 50, 500), strict=True)
    ]
    path = tmp_path / "comparison.html"
    lines = write_comparison(path, runs, ["no images"] * 3)
    words = check_page(path.read_text(encoding="utf-8"))
    assert len(lines) == 2 and all(line in words for line in lines)
    assert lines[0].startswith("run/b is better than run/a by 16.7 points")
    assert "optimizer.lr 0.1 0.2 0.3" in words
    assert "seed 1 1 1" not in words
    write_comparison(path, runs[:2], ["no images"] * 2)
    assert "Images that only run/b has right (10)" in check_page(path.read_text(encoding="utf-8"))


def test_names_tell_runs_apart(tmp_path):
    runs = [run_with(tmp_path, f"{name}/run/1", [True, False], config={"name": "run"}) for name in "ab"]
    assert names_of(runs) == [str(run.folder) for run in runs]
    assert names_of(runs[:1]) == ["run/1"]
