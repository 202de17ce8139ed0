"""Text from outside (names of files and classes, values, messages of libraries) as it may be shown or written."""

import re
from collections.abc import Sequence

from cvtrain.config.redact import redact

# A line longer than this loses its end.
MAX_LINE = 4000
# C0, DEL and C1 controls, line and paragraph separators, marks that reorder the text around them, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# What Excel, LibreOffice and Google Sheets read as the start of a formula, with full-width forms.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def display_text(text: str) -> str:
    r"""Return `text` as one line without control characters: ESC becomes `\x1b`, a line end `\n`."""
    return _CONTROL.sub(_escape, text)


def display_message(text: str) -> str:
    """Return a message of several lines for a terminal or a log, without secrets and control characters.

    Lines after the first are indented, so that none of them looks like a message of its own. A line of more than 4,000
    characters loses its end.
    """
    first, *others = redact(text).replace("\r\n", "\n").split("\n")
    lines = [first, *(line if line[:1] == " " or not line else f"  {line}" for line in others)]
    return "\n".join(_shorten(display_text(line.replace("\t", "    "))) for line in lines)


def display_list(items: Sequence[object], limit: int = 10) -> str:
    """Return `a, b, c`, cut after `limit` items: `a, b, c and 299,990 more`."""
    shown = ", ".join(display_text(str(item)) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    # torch writes its advice in bold
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def escape_formula(cell: str) -> str:
    """Return a text cell of a CSV file with `'` before what a spreadsheet would run as a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape_formula(cell: str) -> str:
    """Undo `escape_formula`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _escape(match: re.Match[str]) -> str:
    letter = match.group()
    code = ord(letter)
    return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _shorten(line: str) -> str:
    if len(line) <= MAX_LINE:
        return line
    return f"{line[:MAX_LINE]} ... ({len(line) - MAX_LINE:,} characters left out)"
