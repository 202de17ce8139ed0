"""The verb `merge`: joins the tables that `predict part=i/n` made. Needs no torch."""

import heapq
from collections.abc import Iterator
from pathlib import Path

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.schema.predict import MergeConfig
from cvtrain.config.text import display_list
from cvtrain.report.prediction_table import Row, part_files, read_columns, read_rows, write_rows


def merge(config: MergeConfig) -> int:
    """Write the rows of all parts in the order of the source, and return their number.

    Raises:
        ConfigError: there are no parts, some are missing, or they come from commands of different settings.
        RunError: a row is missing or there twice, since the parts did not find the same images.
    """
    table = Path(config.output).expanduser()
    by_count = part_files(table) if table.parent.is_dir() else {}
    if len(by_count) != 1:
        found = (
            f"parts of {' and of '.join(map(str, sorted(by_count)))} are there" if by_count else "there are no parts"
        )
        name = f"{table.stem}.1-of-4{table.suffix}"
        raise ConfigError("output", config.output, found, f"the parts of {table} are called like {name}")
    (count, parts), *_ = by_count.items()
    missing = [number for number in range(1, count + 1) if number not in parts]
    if missing:
        raise ConfigError(
            "output",
            config.output,
            f"{len(missing)} of {count} parts are not finished: {display_list([f'{i}/{count}' for i in missing])}",
            f"cvtrain predict ... part={missing[0]}/{count} resume=auto makes one",
        )
    headers = {tuple(read_columns(path)) for path in parts.values()} - {()}
    if len(headers) > 1:
        raise ConfigError("output", config.output, "the parts have different columns", "make them by one command")
    columns = [name for name in next(iter(headers), ()) if name != "row"]
    num_rows = 0

    def joined() -> Iterator[Row]:
        nonlocal num_rows
        streams = [read_rows(path) for path in parts.values()]
        for row in heapq.merge(*streams, key=lambda row: int(row["row"])):
            if int(row["row"]) != num_rows:
                raise RunError(
                    f"{table}: row {num_rows} of the source is {'missing' if int(row['row']) > num_rows else 'twice'} "
                    "in the parts\n  images came or went between their commands: give the same list to each, and "
                    "overwrite=true"
                )
            num_rows += 1
            yield row

    write_rows(table, columns, joined())
    print(f"{num_rows:,} rows of {count} parts in {table}")
    return num_rows
