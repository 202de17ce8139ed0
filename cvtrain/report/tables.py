"""CSV files for people and spreadsheets: what was predicted for each image, and how each class did."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cvtrain.config.text import escape_formula
from cvtrain.runtime.files import atomic_write


def write_predictions_csv(
    path: str | os.PathLike[str],
    names: Iterable[str],
    labels: ArrayLike,
    top_classes: ArrayLike,
    top_probs: ArrayLike,
    classes: Sequence[str],
) -> None:
    """Write one row per image: `path,label,pred,confidence`, then probabilities.

    Given the probabilities of all classes these are `prob_<class>` for every class; given only the best k of them,
    `top1,top1_prob` to `topk,topk_prob`. Classes are given by name; probabilities with six digits.

    Args:
        path: the file, written atomically.
        names: name of each image, N of them.
        labels: (N,) class ids; a negative one is unknown and left empty.
        top_classes: (N, k) class ids of the k largest probabilities, best first.
        top_probs: (N, k) those probabilities.
        classes: names of the K classes.
    """
    labels, top_classes, top_probs = np.asarray(labels), np.asarray(top_classes), np.asarray(top_probs)
    if top_classes.shape != top_probs.shape or labels.shape != top_classes.shape[:1]:
        raise ValueError(
            f"labels {labels.shape}, top_classes {top_classes.shape} and top_probs {top_probs.shape} do not agree: "
            "they must be (N,), (N, k) and (N, k)"
        )
    classes = [escape_formula(name) for name in classes]
    num_given = top_classes.shape[1]
    each_class = num_given == len(classes)
    if each_class:
        header = [f"prob_{name}" for name in classes]
    else:
        header = [cell for rank in range(1, num_given + 1) for cell in (f"top{rank}", f"top{rank}_prob")]
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "pred", "confidence", *header])
        for name, label, best, probs in zip(names, labels, top_classes, top_probs, strict=True):
            numbers = [_number(prob) for prob in probs]
            if each_class:
                cells = [numbers[position] for position in np.argsort(best)]
            else:
                cells = [cell for index, number in zip(best, numbers, strict=True) for cell in (classes[index], number)]
            known = classes[label] if label >= 0 else ""
            writer.writerow([escape_formula(name), known, classes[best[0]], numbers[0], *cells])


def write_per_class_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per class atomically; the columns (class, precision, ...) are those of the first row."""
    columns = list(rows[0]) if rows else []
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _number(value: float | np.floating[Any]) -> str:
    return f"{value:.6g}"


def _cell(value: Any) -> str:
    return _number(value) if isinstance(value, (float, np.floating)) else escape_formula(str(value))
