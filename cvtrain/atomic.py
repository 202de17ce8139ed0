"""Files that are either whole or absent: written beside their place, then renamed into it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, text: bool = True) -> Iterator[IO[Any]]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    A reader, or a run killed in the middle, sees the old content or the new, never a part. The data is on disk
    (fsync) before the rename; that costs some milliseconds, so this is for files that are written now and then.

    Args:
        path: the file; missing folders are made.
        text: UTF-8 text with `\\n` line ends on every system; else bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        options: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "newline": ""} if text else {"mode": "wb"}
        with os.fdopen(descriptor, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives 0600; what a run leaves is shared like any file that the user makes.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _umask() -> int:
    # The only portable way to read it is to set it; another thread could see 0 for a moment, so it is put back at once.
    mask = os.umask(0)
    os.umask(mask)
    return mask
