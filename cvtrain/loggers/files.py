"""`metrics.jsonl` and `metrics.csv`: the figures of a run, kept whatever else is on."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cvtrain.loggers.base import Logger
from cvtrain.runtime.files import atomic_write

METRICS_JSONL = "metrics.jsonl"
METRICS_CSV = "metrics.csv"
_CLOCK = ("step", "epoch")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order; a last line that a kill left torn is passed over.

    Raises:
        ValueError: a line in the middle is no JSON object; names the file and the line.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    rows = []
    # What follows the last line end is empty, or torn.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not a JSON object ({error}); the file was edited or mixed"
            ) from error
        rows.append(row)
    return rows


class FileLogger(Logger):
    """Appends each logged point to metrics.jsonl and metrics.csv.

    Both hold `step` (optimizer steps done), `epoch` (counted from 1) and the values, as fractions where they are
    shares. Each point is handed to the system at once, so that a killed run loses at most its last line. Values that
    are not finite are null in JSON, which knows no others, and `nan`, `inf` or `-inf` in CSV. A CSV column that
    appears later is added to the header, and the rows before it are left empty there.

    Args:
        run_dir: folder of the two files; files that are there are continued.
        num_rows: rows to keep of them, the rest are dropped: those that a run logged before the checkpoint that
            it resumes from, as `state()` gave them when that was made. None: all.
    """

    name = "csv"

    def __init__(self, *, run_dir: Path, num_rows: int | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.jsonl_path = run_dir / METRICS_JSONL
        self.csv_path = run_dir / METRICS_CSV
        self._columns: list[str] = list(_CLOCK)
        self._csv: IO[str]
        self._open()
        self._num_rows = len(read_metrics(self.jsonl_path))
        if num_rows is not None and num_rows < self._num_rows:
            self._keep_rows(num_rows)

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"step": int(step), "epoch": int(epoch) + 1}
        row.update((name, plain_number(value)) for name, value in values.items())
        self._jsonl.write(json.dumps({name: json_number(value) for name, value in row.items()}) + "\n")
        self._jsonl.flush()
        new_columns = [name for name in row if name not in self._columns]
        if new_columns:
            self._csv.close()
            self._columns += new_columns
            self._rewrite_csv(self._read_csv())
            self._csv = _open_to_append(self.csv_path)
        self._csv_writer(self._csv).writerow(row)
        self._csv.flush()
        self._num_rows += 1

    def rewind(self, state: Mapping[str, Any]) -> None:
        """Drop the rows after those that `state` counts."""
        self._keep_rows(int(state["num_rows"]))

    def state(self) -> dict[str, Any]:
        return {"num_rows": self._num_rows}

    def finish(self, exit_code: int) -> None:
        self._close()

    def _open(self) -> None:
        _cut_torn_line(self.jsonl_path)
        _cut_torn_line(self.csv_path)
        self._jsonl = _open_to_append(self.jsonl_path)
        if self.csv_path.stat().st_size == 0:
            self._rewrite_csv([])
        else:
            with self.csv_path.open(encoding="utf-8", newline="") as file:
                self._columns = next(csv.reader(file))
        self._csv = _open_to_append(self.csv_path)

    def _keep_rows(self, num_rows: int) -> None:
        self._close()
        rows = read_metrics(self.jsonl_path)[:num_rows]
        with atomic_write(self.jsonl_path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._rewrite_csv(self._read_csv()[:num_rows])
        self._num_rows = num_rows
        self._open()

    def _close(self) -> None:
        self._jsonl.close()
        self._csv.close()

    def _read_csv(self) -> list[dict[str, str]]:
        with self.csv_path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite_csv(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(self.csv_path) as file:
            writer = self._csv_writer(file)
            writer.writeheader()
            writer.writerows(rows)

    def _csv_writer(self, file: IO[str]) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")


def plain_number(value: Any) -> int | float:
    """A Python int or float of a number, or of an array or tensor of one element.

    Raises:
        TypeError, ValueError: `value` is no single number.
    """
    return int(value) if isinstance(value, int) else float(value)


def json_number(value: int | float) -> int | float | None:
    """The number, or None (null) if it is not finite."""
    return value if math.isfinite(value) else None


def _open_to_append(path: Path) -> IO[str]:
    # Open for the whole run: opening it anew for each point costs more than the write.
    return path.open("a", encoding="utf-8", newline="")


def _cut_torn_line(path: Path) -> None:
    """Make `path` if it is missing; cut what follows its last line end, the trace of a kill while writing."""
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        # A line is far shorter than this.
        start = max(0, size - 2**20)
        file.seek(start)
        tail = file.read()
        if not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
