"""Run folders as a training run leaves them, from predictions that a test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cvtrain.report.tables import write_per_class_csv, write_predictions_csv


def write_run(
    folder: Path,
    labels: Sequence[int] | np.ndarray,
    preds: Sequence[int] | np.ndarray,
    confidences: Sequence[float] | np.ndarray,
    *,
    classes: Sequence[str] = ("ant", "bee"),
    paths: Sequence[str] | None = None,
    split: str = "val",
    config: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """Write config.yaml, overrides.yaml, summary.json, metrics.jsonl and the tables of a split; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = paths if paths is not None else [f"val/{number}.jpg" for number in range(len(labels))]
    best, probs = np.asarray(preds)[:, None], np.asarray(confidences)[:, None]
    write_predictions_csv(folder / f"predictions_{split}.csv", names, labels, best, probs, classes)
    write_per_class_csv(folder / f"per_class_{split}.csv", [{"class": name} for name in classes])
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"name": "made", "seed": 3}), encoding="utf-8")
    (folder / "overrides.yaml").write_text("[seed=3]", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"end_reason": "all epochs done", **summary}), encoding="utf-8")
    rows = [{"step": step, "epoch": step, "train/loss": 1 / step, "val/loss": 2 / step} for step in range(1, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
