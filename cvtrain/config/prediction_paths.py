"""Where `cvtrain predict` writes: the table, its part of several, and the folder of what is not finished."""

import re
from pathlib import Path

from cvtrain.config.errors import ConfigError

SUFFIXES = (".csv", ".jsonl", ".parquet")
JOB = "job.json"
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
STDIN = "-"
UNSURE = "unsure"


def parse_part(part: str | None) -> tuple[int, int]:
    """Return i and n of `i/n`, 1 and 1 of None.

    Raises:
        ConfigError: it is no such fraction.
    """
    if part is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(
            "part",
            part,
            "must be i/n, with i from 1 to n",
            "part=1/4 to part=4/4 share the work among four commands",
        )
    return number, count


def table_path(output: str, part: str | None) -> Path:
    """Return the table's path: that of `output`, or `predictions.2-of-4.csv` for part 2/4."""
    path = Path(output).expanduser()
    number, count = parse_part(part)
    return path if part is None else path.with_name(f"{path.stem}.{number}-of-{count}{path.suffix}")


def explanations_folder(table: Path) -> Path:
    """Return the folder of a table's overlays: `predictions_explanations` for predictions.csv."""
    return table.with_name(f"{table.stem}_explanations")


def unfinished_folder(table: Path) -> Path:
    """Return the folder that holds a table's rows until it is complete."""
    return table.with_name(f"{table.name}.parts")
