"""Read the rows of a manifest: encoding, delimiter, header, and errors that name the line."""

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from cvtrain.config.errors import ConfigError
from cvtrain.config.hints import closest
from cvtrain.config.schema.data import IMAGE_EXTENSIONS, CsvConfig
from cvtrain.config.text import unescape_formula

log = logging.getLogger(__name__)

# Columns that are probably meant as splits.
_SPLIT_LIKE = ("is_valid", "is_val", "is_validation", "is_test", "is_train", "fold", "subset", "partition")
_DELIMITERS = (",", ";", "\t", "|")
# The first line with which Excel names the delimiter, sometimes quoted.
_SEP_LINE = re.compile(r'"?sep=(?P<delimiter>[^"\r\n])"?', re.IGNORECASE)
_ARCHIVE_STARTS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx, .ods and .zip; .xls


class Row(NamedTuple):
    """One image. `number` is its line in the file, from 1; `split` and `group` are None without such a column."""

    number: int
    path: str
    label: str
    split: str | None
    group: str | None


def read_rows(config: CsvConfig) -> Iterator[Row]:
    """The rows of `config.file` that are not blank, one at a time.

    Raises:
        ConfigError: no such file, not text, a column is missing, or a row lacks a field; it names the line.
    """
    try:
        file = Path(config.file).expanduser()
        if file.exists() and not file.is_file():  # to open a pipe could block for ever
            raise ConfigError(
                key="data.file", value=config.file, rule="is not a regular file", remedy="save the rows in a file"
            )
        with file.open(encoding=_encoding(file, config), newline="") as text:
            yield from _parse(text, config)
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: {error}"
        remedy = "save it as UTF-8 (Excel: file type 'CSV UTF-8')"
        raise ConfigError("data.file", config.file, rule, remedy) from error
    except OSError as error:
        raise ConfigError(key="data.file", value=config.file, rule=f"cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise ConfigError(key="data.file", value=config.file, rule=f"is no table of columns: {error}") from error


def _encoding(file: Path, config: CsvConfig) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 (what Excel calls Unicode text)."""
    with file.open("rb") as text:
        start = text.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if start[:4] in _ARCHIVE_STARTS or start[:2] == b"\x1f\x8b":
        rule = "is a spreadsheet or an archive, not text"
        remedy = "export the table as CSV, or unpack it"
        raise ConfigError("data.file", config.file, rule, remedy)
    if start[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if start[:1] == b"\0" else "utf-8-sig"


def _parse(text: TextIO, config: CsvConfig) -> Iterator[Row]:
    lines = iter(text)
    first_line = next((line for line in lines if line.strip()), "")
    announced = _SEP_LINE.fullmatch(first_line.strip("\r\n"))
    header_line = next((line for line in lines if line.strip()), "") if announced else first_line
    delimiter = _find_delimiter(header_line, config)
    if announced and config.delimiter == "auto":
        delimiter = announced["delimiter"]
    text.seek(0)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    if announced:
        next(row for row in rows if any(row))
    header = [column.strip() for column in next((row for row in rows if any(row)), [])]
    _check_header(header, config)
    path_at = _find_column(header, config.path_column, "data.path_column", config.file)
    label_at = _find_column(header, config.label_column, "data.label_column", config.file)
    split_at = _find_split_column(header, config)
    group_at = None
    if config.group_column is not None:
        group_at = _find_column(header, config.group_column, "data.group_column", config.file)
    for fields in rows:
        if not any(field.strip() for field in fields):
            continue
        while len(fields) > len(header) and not fields[-1].strip():  # spreadsheets end rows with delimiters
            fields.pop()
        if len(fields) != len(header):
            too_many = f'a field with {delimiter!r} in it needs quotes: "a{delimiter}b.jpg"'
            rule = f"line {rows.line_num} has {len(fields)} fields, the header {len(header)}"
            remedy = too_many if len(fields) > len(header) else "complete the row, or remove it"
            raise ConfigError("data.file", config.file, rule, remedy)
        row = Row(
            rows.line_num,
            unescape_formula(fields[path_at].strip()),
            unescape_formula(fields[label_at].strip()),
            None if split_at is None else fields[split_at].strip(),
            None if group_at is None else unescape_formula(fields[group_at].strip()),
        )
        for what, field in (("path", row.path), ("label", row.label), ("group", row.group)):
            if field == "":
                raise ConfigError(key="data.file", value=config.file, rule=f"line {row.number} has no {what}")
        yield row


def _check_header(header: list[str], config: CsvConfig) -> None:
    """Raise ConfigError if the first row is an image and not the names of columns."""
    wanted = {config.path_column.casefold(), config.label_column.casefold()}
    if wanted & {column.casefold() for column in header}:
        return
    images = [field for field in header if field.lower().endswith(IMAGE_EXTENSIONS)]
    if images:
        rule = f"has no header row: its first row is the image {images[0]}"
        remedy = f"add a first line with the names of the columns: {config.path_column},{config.label_column}"
        raise ConfigError("data.file", config.file, rule, remedy)


def _find_delimiter(header_line: str, config: CsvConfig) -> str:
    """The configured delimiter, or the one under which the header has the wanted columns.

    `csv.Sniffer` guesses from the frequency of characters and fails on short headers and on paths with commas; the
    names that we look for are known, so trying the four delimiters settles it.
    """
    if config.delimiter != "auto":
        if len(config.delimiter) != 1 or config.delimiter in '"\r\n':
            raise ConfigError(
                key="data.delimiter",
                value=config.delimiter,
                rule="is not a character that can stand between columns",
                remedy="allowed: auto, which finds , ; | and tab, or any one character",
            )
        return config.delimiter
    wanted = {config.path_column.casefold(), config.label_column.casefold()}

    def score(delimiter: str) -> tuple[int, int]:
        columns = [column.strip().casefold() for column in next(csv.reader([header_line], delimiter=delimiter), [])]
        return len(wanted & set(columns)), len(columns)

    return max(_DELIMITERS, key=score)


def _find_column(header: list[str], wanted: str, key: str, file: str) -> int:
    """Position of the column `wanted`: by its exact name, else whatever the case."""
    exact = [position for position, column in enumerate(header) if column == wanted]
    found = exact or [position for position, column in enumerate(header) if column.casefold() == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(key=key, value=wanted, rule=f"{file} has {len(found)} columns of this name")
    nearest = closest(wanted, header)
    columns = ", ".join(header) if any(header) else "none"
    raise ConfigError(
        key=key,
        value=wanted,
        rule=f"no such column in {file}; its header has: {columns}",
        remedy=f"did you mean {key}={nearest[0]}?" if nearest else f"set {key} to one of them; a header row is needed",
    )


def _find_split_column(header: list[str], config: CsvConfig) -> int | None:
    """Return the position of the split column; None if it is missing and was not set by name."""
    default = CsvConfig.__dataclass_fields__["split_column"].default
    columns = [column.casefold() for column in header]
    if config.split_column == default and config.split_column.casefold() not in columns:
        if config.val_values or config.test_values:
            key = "data.val_values" if config.val_values else "data.test_values"
            raise ConfigError(key=key, rule=f"needs data.split_column: {config.file} has no column {default}")
        for column in header:
            if column.casefold() in _SPLIT_LIKE:
                log.warning("%s: column %s is not used; data.split_column=%s does", config.file, column, column)
        return None
    return _find_column(header, config.split_column, "data.split_column", config.file)
