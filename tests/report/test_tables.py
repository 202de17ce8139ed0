"""CSV tables by their exact text."""

import csv
from pathlib import Path

import numpy as np
import pytest

from cvtrain.report.tables import write_per_class_csv, write_predictions_csv


def test_predictions_with_a_column_per_class(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions_csv(
        path,
        ["val/a, b.jpg", "é.png"],
        np.array([0, -1]),
        np.array([[1, 0], [0, 1]]),
        np.array([[0.75, 0.25], [0.999999, 0.000001]], np.float64),
        ["ants", 'bees "big"'],
    )
    assert path.read_text(encoding="utf-8") == (
        'path,label,pred,confidence,prob_ants,"prob_bees ""big"""\n'
        '"val/a, b.jpg",ants,"bees ""big""",0.75,0.25,0.75\n'
        "é.png,,ants,0.999999,0.999999,1e-06\n"
    )


def test_predictions_of_many_classes_hold_the_best(tmp_path: Path) -> None:
    classes = [f"c{index}" for index in range(21)]
    write_predictions_csv(tmp_path / "p.csv", ["x"], [3], [[20, 7, 3]], [[0.5, 0.3, 0.2]], classes)
    with (tmp_path / "p.csv").open(newline="") as file:
        header, row = csv.reader(file)
    assert header[4:] == ["top1", "top1_prob", "top2", "top2_prob", "top3", "top3_prob"]
    assert row == ["x", "c3", "c20", "0.5", "c20", "0.5", "c7", "0.3", "c3", "0.2"]


def test_predictions_that_do_not_agree_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"top_classes \(2, 2\) and top_probs \(2, 3\) do not agree"):
        write_predictions_csv(tmp_path / "p.csv", ["a", "b"], [0, 0], np.zeros((2, 2)), np.zeros((2, 3)), ["x", "y"])
    with pytest.raises(ValueError, match="zip"):
        write_predictions_csv(tmp_path / "p.csv", ["a"], [0, 0], [[0, 1]] * 2, np.zeros((2, 2)), ["x", "y"])
    assert list(tmp_path.iterdir()) == []


def test_per_class(tmp_path: Path) -> None:
    path = tmp_path / "per_class.csv"
    write_per_class_csv(
        path,
        [
            {"class": "ants", "precision": 1 / 3, "recall": 1.0, "f1": 0.5, "support": 2},
            {"class": "bees", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        ],
    )
    assert path.read_text() == "class,precision,recall,f1,support\nants,0.333333,1,0.5,2\nbees,0,0,0,0\n"
