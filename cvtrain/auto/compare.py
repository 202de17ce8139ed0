"""A paired test between two networks on the same val images."""

import csv
from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.errors import RunError
from cvtrain.report.intervals import sign_test


@dataclass(frozen=True)
class Comparison:
    """Images that only one of two networks has right.

    Attributes:
        won, lost: images that only the new network, only the old one has right.
        p_value: chance of at least as many won, if both were equally good (exact sign test, McNemar 1947).
    """

    won: int
    lost: int
    p_value: float

    @property
    def is_better(self) -> bool:
        """Return True if the new network is more likely better than not."""
        return self.won > self.lost


def compare_predictions(new: Path, old: Path) -> Comparison:
    """Compare the tables predictions_val.csv of two runs.

    Raises:
        RunError: they are of other images.
    """
    of_new, of_old = _read_hits(new), _read_hits(old)
    if of_new.keys() != of_old.keys():
        raise RunError(f"{new} and {old} are of different images: they cannot be compared")
    won = sum(of_new[path] and not of_old[path] for path in of_new)
    lost = sum(of_old[path] and not of_new[path] for path in of_new)
    return Comparison(won, lost, sign_test(won, lost))


def _read_hits(table: Path) -> dict[str, bool]:
    with table.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["label"] == row["pred"] for row in csv.DictReader(file)}
