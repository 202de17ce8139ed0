"""Paths whose letters are stored in another Unicode form than they are typed in.

macOS stores `\u00f6` decomposed (NFD); on Linux a folder copied from there is another one than the same letters typed.
"""

import unicodedata
from pathlib import Path
from typing import Any

KEYS = ("root", "file")


def find_stored_forms(data: Any) -> None:
    """Replace `data.root` and `data.file` by the path on disk that differs from them in Unicode form only, if any."""
    for key in KEYS:
        typed = getattr(data, key, None)
        if isinstance(typed, str) and not typed.isascii():
            setattr(data, key, stored_form(typed))


def stored_form(typed: str) -> str:
    """Return the existing path that equals `typed` in NFC; `typed` itself if it exists or nothing does."""
    try:
        path = Path(typed).expanduser()
        if path.exists():
            return typed
        found = Path(path.anchor)
        for part in path.parts[1:] if path.anchor else path.parts:
            found = found / part if (found / part).exists() else _same_letters(found, part)
    except (OSError, StopIteration):
        return typed
    return str(found)


def _same_letters(folder: Path, name: str) -> Path:
    wanted = unicodedata.normalize("NFC", name)
    return next(entry for entry in folder.iterdir() if unicodedata.normalize("NFC", entry.name) == wanted)
