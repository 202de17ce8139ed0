"""What a run folder holds, read back for its report."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cvtrain.checkpoint import BEST
from cvtrain.config.errors import ConfigError
from cvtrain.config.resume import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, OVERRIDES, SUMMARY
from cvtrain.config.text import display_text, first_line, unescape_formula
from cvtrain.loggers.files import read_metrics
from cvtrain.runtime.lock import holder_of

KEY = "runs"
SPLITS = ("val", "test", "train", "all")
_MAX_CELL = 1 << 20


@dataclass(frozen=True)
class RunResults:
    """A finished run, or an evaluation of a checkpoint.

    Attributes:
        split: of the images below.
        config, overrides, environment, summary: as in the files of these names; empty if there is none.
        metrics: rows of metrics.jsonl.
        classes: names by id.
        paths: names of the N images.
        labels, preds: (N,) int64 class ids.
        confidences: (N,) float64 probability of the predicted class.
        num_test, num_test_right: images of the test split and those that are right; 0 without one.
    """

    folder: Path
    split: str
    config: dict[str, Any]
    overrides: list[str]
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    classes: tuple[str, ...]
    paths: list[str]
    labels: np.ndarray
    preds: np.ndarray
    confidences: np.ndarray
    num_test: int = 0
    num_test_right: int = 0

    @property
    def is_right(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels == self.preds

    @property
    def is_evaluation(self) -> bool:
        """Return whether `cvtrain evaluate` made the folder, and not a training run."""
        return isinstance(self.config.get("checkpoint"), str)

    @property
    def title(self) -> str:
        """Return the name of the run in pages: that of its experiment and of its folder."""
        name = self.config.get("name") or self.folder.absolute().parent.name
        return f"{name}/{self.folder.absolute().name}"


def read_results(folder: Path, split: str | None = None, *, is_own: bool = False) -> RunResults:
    """Read what a run has left.

    Args:
        split: whose predictions; None: val, or the first that there is.
        is_own: the run in this process asks, which holds the folder.

    Raises:
        ConfigError: it is no run folder, the run still goes on, or what it holds is incomplete or damaged.
    """
    if not folder.is_dir():
        raise _wrong(folder, "is a file, not a run folder" if folder.exists() else "no such folder")
    if not (folder / CONFIG).exists() and not (folder / SUMMARY).exists():
        newest = max(folder.glob(f"*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, default=None)
        remedy = "" if newest is None else f"did you mean its newest run, {newest.parent}?"
        raise _wrong(folder, f"is no run folder: it has neither {CONFIG} nor {SUMMARY}", remedy)
    holder = None if is_own else holder_of(folder)
    if holder is not None:
        raise _wrong(folder, f"this run is still going, in {holder}", "its report comes at its end")
    summary = _read_json(folder, SUMMARY)
    chosen = split or next((name for name in SPLITS if _table(folder, name).exists()), None)
    if chosen is None or not _table(folder, chosen).exists():
        raise _without_predictions(folder, chosen, summary)
    classes = _read_classes(folder, chosen)
    paths, labels, preds, confidences = _read_predictions(folder, chosen, classes)
    num_test = num_test_right = 0
    if chosen == "val" and _table(folder, "test").exists():
        _, test_labels, test_preds, _ = _read_predictions(folder, "test", classes)
        num_test, num_test_right = len(test_labels), int((test_labels == test_preds).sum())
    return RunResults(
        folder=folder,
        split=chosen,
        config=_read_yaml(folder, CONFIG, dict),
        overrides=_read_yaml(folder, OVERRIDES, list),
        environment=_read_json(folder, ENVIRONMENT),
        summary=summary,
        metrics=_read_metrics(folder),
        classes=classes,
        paths=paths,
        labels=labels,
        preds=preds,
        confidences=confidences,
        num_test=num_test,
        num_test_right=num_test_right,
    )


def has_best(results: RunResults) -> bool:
    """Return whether the run's best checkpoint is there."""
    return (results.folder / CHECKPOINTS / BEST).exists()


def read_findings(folder: Path | None, split: str, wanted: set[str]) -> tuple[dict[str, list[str]], int]:
    """Return what `cvtrain check` found about images, and how many images of the split have a copy in another one.

    Args:
        folder: that has a findings.csv; None, or without one: nothing.
        wanted: names of the images.

    Raises:
        ConfigError: the table is damaged.
    """
    found: dict[str, list[str]] = {}
    leaked = set()
    if folder is not None and (folder / "findings.csv").exists():
        for row in _read_table(folder, "findings.csv", ("path", "split", "check", "detail")):
            path = unescape_formula(row["path"])
            if row["split"] == split and row["check"] == "leakage":
                leaked.add(path)
            if row["split"] == split and path in wanted:
                found.setdefault(path, []).append(f"{row['check'].replace('_', ' ')}: {row['detail']}")
    return found, len(leaked)


def _table(folder: Path, split: str) -> Path:
    return folder / f"predictions_{split}.csv"


def _wrong(folder: Path, rule: str, remedy: str = "") -> ConfigError:
    return ConfigError(KEY, folder, rule, remedy)


def _damaged(folder: Path, name: str, cause: str) -> ConfigError:
    return _wrong(folder, f"{name} is damaged: {cause}", "evaluate the run's checkpoint, and report that folder")


def _without_predictions(folder: Path, split: str | None, summary: dict[str, Any]) -> ConfigError:
    if split is not None:
        there = [name for name in SPLITS if _table(folder, name).exists()]
        remedy = f"it has {' and '.join(there)}" if there else ""
        return ConfigError("split", split, f"{folder} has no predictions_{split}.csv", remedy)
    checkpoints = sorted((folder / CHECKPOINTS).glob("*.pt"))
    resume = f"cvtrain resume={folder} finishes it" if checkpoints else "it has no checkpoint to resume from"
    if not summary:
        return _wrong(folder, "this run was killed, or failed, before it wrote its predictions", resume)
    if summary.get("end_reason") in ("interrupted", "pruned"):
        return _wrong(folder, f"this run was {summary['end_reason']}, so it has no predictions yet", resume)
    best = folder / CHECKPOINTS / BEST
    remedy = f"cvtrain evaluate checkpoint={best} makes a folder with predictions" if best.exists() else ""
    return _wrong(folder, "has no predictions_val.csv", remedy)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(folder, name, first_line(error)) from error
    if not isinstance(content, dict):
        raise _damaged(folder, name, "it holds no mapping")
    return content


def _read_yaml(folder: Path, name: str, kind: type) -> Any:
    try:
        content = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(folder, name, first_line(error)) from error
    if not isinstance(content, kind):
        raise _damaged(folder, name, f"it holds no {'mapping' if kind is dict else 'list'}")
    return content


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        rows = read_metrics(folder / METRICS)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _damaged(folder, METRICS, first_line(error)) from error
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise _damaged(folder, METRICS, "a row has no step")
    return rows


def _read_table(folder: Path, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_MAX_CELL)
    line = 1
    try:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in columns if column not in (rows.fieldnames or ())]
            if missing:
                raise _damaged(folder, name, f"it has no column {missing[0]}")
            for row in rows:
                line = rows.line_num
                if any(row[column] is None for column in columns):
                    raise _damaged(folder, name, f"line {line} is cut")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(folder, name, f"after line {line}: {first_line(error)}") from error


def _read_classes(folder: Path, split: str) -> tuple[str, ...]:
    name = f"per_class_{split}.csv"
    return tuple(unescape_formula(row["class"]) for row in _read_table(folder, name, ("class",)))


def _read_predictions(
    folder: Path, split: str, classes: tuple[str, ...]
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Return names, labels, predictions and confidences of a table; the probabilities of each class are passed over."""
    name = _table(folder, split).name
    ids = {class_name: number for number, class_name in enumerate(classes)}
    paths, labels, preds, confidences = [], [], [], []
    for row in _read_table(folder, name, ("path", "label", "pred", "confidence")):
        path = unescape_formula(row["path"])
        try:
            labels.append(ids[unescape_formula(row["label"])])
            preds.append(ids[unescape_formula(row["pred"])])
            confidences.append(float(row["confidence"]))
        except KeyError as error:
            cause = f"{path} has a class that per_class_{split}.csv lacks, {display_text(str(error.args[0]))!r}"
            raise _damaged(folder, name, cause) from error
        except ValueError as error:
            raise _damaged(folder, name, f"the confidence of {path} is no number") from error
        paths.append(path)
    if not paths:
        raise _damaged(folder, name, "it has no images")
    # Logits that are not finite have no probabilities.
    return paths, np.array(labels), np.array(preds), np.nan_to_num(np.array(confidences))
