"""Tables of predictions without labels: .csv, .jsonl and .parquet, written part by part and read row by row.

A row is a dict: `path`; `pred` and `confidence`, None where there is an `error`; `classes` and `probs`, the most
probable first; then, where wanted, `embedding`; `explanation`, `hot_drop`, `random_drop` and `meaningful`; and `row`,
the image's place in the source. In CSV it is flat, and text.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cvtrain.config.text import escape_formula
from cvtrain.runtime.files import atomic_write

Row = dict[str, Any]
_ROWS_AT_ONCE = 1024
_MAX_CELL = 1 << 30
_TYPES = {"confidence": "float", "classes": "list<string>", "probs": "list<float>", "embedding": "list<float>"}
_TYPES |= {"hot_drop": "float", "random_drop": "float", "meaningful": "bool", "row": "int"}
EXPLANATION = ("explanation", "hot_drop", "random_drop", "meaningful")


def columns_of(suffix: str, *, top_k: int, embeddings: bool, rows: bool, explanations: bool = False) -> list[str]:
    """Return the columns of a table whose file ends in `suffix`."""
    best = ["classes", "probs"]
    if suffix == ".csv":
        best = [name for rank in range(1, top_k + 1) for name in (f"top{rank}", f"top{rank}_prob")] if top_k > 1 else []
    return [
        "path",
        "pred",
        "confidence",
        *best,
        *["embedding"] * embeddings,
        *EXPLANATION * explanations,
        "error",
        *["row"] * rows,
    ]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write a table atomically, in the format of its name.

    Args:
        rows: as `read_rows` gives them, or nested; those of a CSV file are made flat.

    Raises:
        OSError: the disk is full or the folder cannot be written; an old file is untouched.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, columns, rows)
        return
    with atomic_write(path) as file:
        if path.suffix == ".jsonl":
            for row in rows:
                file.write(json.dumps({name: _rounded(row[name]) for name in columns}, ensure_ascii=False) + "\n")
            return
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            flat = _flat(row) if "classes" in row else row
            writer.writerow([flat.get(name, "") for name in columns])


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table, of which only some are held at once."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
        return
    csv.field_size_limit(_MAX_CELL)  # for long embeddings
    with path.open(encoding="utf-8", newline="") as file:
        yield from map(json.loads, file) if path.suffix == ".jsonl" else csv.DictReader(file)


def read_columns(path: Path) -> list[str]:
    """Return the columns of a table; of an empty .jsonl file, none."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        return parquet.read_schema(path).names
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return next(csv.reader(file))
        return list(json.loads(file.readline() or "{}"))


class PartFiles:
    """The rows of a table that is not finished, in files of its own: `part-000000.csv`, ...

    Args:
        folder: that holds them.
        columns: of the table.
        suffix: its format.
    """

    def __init__(self, folder: Path, columns: Sequence[str], suffix: str) -> None:
        self.folder = folder
        self.columns = list(columns)
        self.suffix = suffix
        self.num_parts = 0
        while self._path(self.num_parts).exists():
            self.num_parts += 1

    def append(self, rows: Sequence[Row]) -> None:
        """Write the next part; it is on disk when this returns."""
        write_rows(self._path(self.num_parts), self.columns, rows)
        self.num_parts += 1

    def rows(self) -> Iterator[Row]:
        """Yield the rows of all parts, in order."""
        for number in range(self.num_parts):
            yield from read_rows(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self.suffix}"


def _flat(row: Row) -> Row:
    """A row for a CSV file: texts that are no formulas, probabilities with six digits as in predictions_<split>.csv."""
    flat = {name: escape_formula(row[name] or "") for name in ("path", "pred", "error")}
    flat["confidence"] = "" if row["confidence"] is None else f"{row['confidence']:.6g}"
    for rank, (name, prob) in enumerate(zip(row["classes"], row["probs"], strict=True), start=1):
        flat |= {f"top{rank}": escape_formula(name), f"top{rank}_prob": f"{prob:.6g}"}
    if row.get("embedding") is not None:
        flat["embedding"] = json.dumps(_rounded(row["embedding"]))
    if row.get("explanation") is not None:
        flat |= {"explanation": escape_formula(row["explanation"]), "meaningful": str(row["meaningful"]).lower()}
        flat |= {name: f"{row[name]:.6g}" for name in ("hot_drop", "random_drop") if row[name] is not None}
    if "row" in row:
        flat["row"] = str(row["row"])
    return flat


def _rounded(value: Any) -> Any:
    """Numbers with nine digits, which tell any two of float32 apart."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    types = {"string": pa.string(), "float": pa.float32(), "int": pa.int64(), "bool": pa.bool_()}
    types |= {f"list<{name}>": pa.list_(types[name]) for name in ("string", "float")}
    schema = pa.schema([(name, types[_TYPES.get(name, "string")]) for name in columns])
    rest = iter(rows)
    with atomic_write(path, text=False) as file, parquet.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(rest, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def part_files(table: Path) -> dict[int, dict[int, Path]]:
    """Return the finished tables of `part=i/n` beside `table`: by n, then by i."""
    found: dict[int, dict[int, Path]] = {}
    name = re.compile(rf"{re.escape(table.stem)}\.(\d+)-of-(\d+){re.escape(table.suffix)}")
    for entry in os.scandir(table.parent):
        if match := name.fullmatch(entry.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = Path(entry.path)
    return found
