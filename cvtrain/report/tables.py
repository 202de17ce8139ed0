"""CSV files for people and spreadsheets: what was predicted for each image, and how each class did."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cvtrain.atomic import atomic_file

# Up to here each class has a column of its own; above, a row holds its best five.
MAX_CLASS_COLUMNS = 20
TOP = 5


def write_predictions_csv(
    path: str | os.PathLike[str],
    names: Iterable[str],
    labels: ArrayLike,
    preds: ArrayLike,
    probs: ArrayLike,
    classes: Sequence[str],
) -> None:
    """One row per image: `path,label,pred,confidence`, then probabilities.

    Up to 20 classes these are `prob_<class>` for every class; with more, `top1,top1_prob` to `top5,top5_prob`, the
    best first and the lower class id first among equals. Classes are given by name; probabilities with six digits.

    Args:
        path: the file, written atomically.
        names: name of each image, N of them.
        labels: (N,) class ids; a negative one is unknown and left empty.
        preds: (N,) class ids.
        probs: (N, K) probabilities.
        classes: names of the K classes.
    """
    labels, preds, probs = np.asarray(labels), np.asarray(preds), np.asarray(probs)
    if probs.shape != (len(preds), len(classes)) or labels.shape != preds.shape:
        raise ValueError(
            f"labels {labels.shape}, preds {preds.shape}, probs {probs.shape} and {len(classes)} classes do not agree: "
            "they must be (N,), (N,), (N, K) and K"
        )
    each_class = len(classes) <= MAX_CLASS_COLUMNS
    if each_class:
        header = [f"prob_{name}" for name in classes]
    else:
        header = [cell for rank in range(1, TOP + 1) for cell in (f"top{rank}", f"top{rank}_prob")]
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "pred", "confidence", *header])
        for name, label, pred, row in zip(names, labels, preds, probs, strict=True):
            cells = [_number(prob) for prob in row] if each_class else _top_cells(row, classes)
            known = classes[label] if label >= 0 else ""
            writer.writerow([name, known, classes[pred], _number(row[pred]), *cells])


def write_per_class_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per class, the columns those of the first row (class, precision, recall, f1, support), atomically."""
    columns = list(rows[0]) if rows else []
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _top_cells(probs: np.ndarray, classes: Sequence[str]) -> list[str]:
    # Stable, so that equal probabilities keep the order of the classes.
    best = np.argsort(-probs, kind="stable")[:TOP]
    return [cell for index in best for cell in (classes[index], _number(probs[index]))]


def _number(value: float | np.floating[Any]) -> str:
    return f"{value:.6g}"


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, (float, np.floating)) else str(value)
