"""The bytes of an image file: only of a regular file, only as many as an image can need, and with patience.

Network disks fail for a moment now and then; a pipe or a device in a file's place would block for ever.
"""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH116, PTH123

import errno
import os
import stat
import time

from cvtrain.data.images.errors import BadImageError

# Seconds to wait before the second and the third try.
RETRY_DELAYS = (0.1, 0.5)

# What passes by itself: a server that restarts, a handle that went stale, a cable.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ENETRESET", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of the regular file `path`.

    Raises:
        BadImageError: it is missing, no regular file, has more than `max_bytes`, or still cannot be read at the third
            try.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            return _read(path, max_bytes)
        except MemoryError as error:
            raise BadImageError(path, "not enough memory to read it") from error
        except OSError as error:
            cause = error.strerror or str(error)
            if error.errno not in _PASSING:
                raise BadImageError(path, f"cannot be opened: {cause}") from error
            if delay is None:
                raise BadImageError(path, f"cannot be read, at {len(RETRY_DELAYS) + 1} tries: {cause}") from error
            time.sleep(delay)
    raise AssertionError("the last try returns or raises")


def _read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise BadImageError(path, "a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # Opening a pipe would block for ever.
        raise BadImageError(path, "not a regular file")
    if status.st_size > max_bytes:
        raise BadImageError(
            path, f"its {status.st_size:,} bytes are more than an image within data.max_image_pixels can need"
        )
    with open(path, "rb") as file:
        return file.read(status.st_size)  # and not what a program that is still writing adds
