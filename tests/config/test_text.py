"""Names and values of others as they are shown: one line, no control characters, no formulas, no endless lists."""

import csv
import logging

import pytest

from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.text import (
    MAX_LINE,
    display_list,
    display_message,
    display_text,
    escape_formula,
    first_line,
    unescape_formula,
)
from cvtrain.data.sources.classes import class_name
from cvtrain.report.tables import write_per_class_csv, write_predictions_csv
from cvtrain.runtime.console import DisplayFormatter

FORGED = "bees\n2026-01-01 INFO cvtrain: done\x1b[31m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bees", "bees"),
        ("Bienen äöü 蜜蜂 👩‍🔬", "Bienen äöü 蜜蜂 👩‍🔬"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("a\x00\x7f\x9b", r"a\x00\x7f\x9b"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
        ("a\udcff", r"a\udcff"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert display_text(text) == shown
    assert display_text(shown) == shown


def test_later_lines_of_a_message_are_indented():
    assert display_message("one\ntwo\n  three\n\x1b") == "one\n  two\n  three\n  \\x1b"
    assert display_message(display_message("one\ntwo")) == "one\n  two"


def test_long_line_loses_its_end():
    shown = display_message("a" * 3_000_000)
    assert len(shown) < MAX_LINE + 100
    assert "2,996,000 characters left out" in shown


def test_long_list_is_cut():
    assert display_list(["a", "b"]) == "a, b"
    assert display_list([f"c{number}" for number in range(300_000)], 2) == "c0, c1 and 299,998 more"


def test_class_names_are_one_line():
    assert class_name(FORGED) == r"bees\n2026-01-01 INFO cvtrain: done\x1b[31m"


@pytest.mark.parametrize("where", ["message", "argument", "warning"])
def test_log_lines_cannot_be_forged(where):
    message, arguments = (FORGED, ()) if where == "message" else ("class %s", (FORGED,))
    record = logging.LogRecord("cvtrain", logging.INFO, "", 0, message, arguments, None)
    lines = DisplayFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s").format(record).split("\n")
    assert "\x1b" not in "".join(lines)
    assert all(line.startswith("  ") for line in lines[1:])


def test_errors_cannot_be_forged():
    text = str(ConfigError("data.root", FORGED, f"has {FORGED}", "rename it"))
    assert text.split("\n") == [
        r"data.root=bees\n2026-01-01 INFO cvtrain: done\x1b[31m: has bees",
        r"  2026-01-01 INFO cvtrain: done\x1b[31m",
        "  rename it",
    ]


def test_error_hides_a_password_with_blanks():
    assert "hush" not in str(Problem("logger.mlflow.password", "hush a, hush b", "must be a number"))


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd()", "'=cmd()"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@sum", "'@sum"),
        ("\tx", "'\tx"),
        ("\uff1dx", "'\uff1dx"),
        ("'=x", "''=x"),
        ("bees", "bees"),
        ("it's", "it's"),
        ("'quoted'", "'quoted'"),
        ("", ""),
    ],
)
def test_formulas_are_escaped_and_come_back(cell, written):
    assert escape_formula(cell) == written
    assert unescape_formula(written) == cell


def test_csv_files_hold_no_formulas(tmp_path):
    classes = ["=cmd()", "-b"]
    write_predictions_csv(tmp_path / "p.csv", ["@x.png"], [0], [[1, 0]], [[0.75, 0.25]], classes)
    write_per_class_csv(tmp_path / "c.csv", [{"class": name, "recall": -0.5} for name in classes])
    with (tmp_path / "p.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["'@x.png", "'=cmd()", "'-b", "0.75", "0.25", "0.75"]
    with (tmp_path / "c.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["'=cmd()", "-0.5"], ["'-b", "-0.5"]]


def test_first_line_of_an_error_or_its_type() -> None:
    assert first_line(ValueError("\x1b[1ma is bad\x1b[0m\nand why")) == "a is bad"
    assert first_line(KeyError()) == "KeyError"
