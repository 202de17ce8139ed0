"""Read the bytes of an image file and check that it is whole.

Only regular files are read, and only as many bytes as an image can need: a pipe or a device in a file's place would
block for ever. Reads that fail for a moment, as on network disks, are tried again.

The checks are the same for every reader, since decoders differ in what they let pass: OpenCV before 5 fills the missing
part of a truncated JPEG with grey, Pillow takes a PNG without its end, and the PNG decoder of torchvision 0.29 crashes
the process on a damaged stream.
"""

# Paths stay strings here: a Path object per image would cost more than the work on it.
# ruff: noqa: PTH116, PTH123

import errno
import os
import stat
import time
import zlib
from collections.abc import Iterator

import numpy as np

from cvtrain.data.images.errors import BadImageError, ImageError, TooManyFilesError, is_out_of_files

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

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHECKED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

# Which bytes make a JPEG marker of the 0xFF before them: within picture data, 0xFF00 is an escaped 0xFF and
# 0xFFD0..D7 are restart points; 0xFFFF is a fill byte.
_IS_MARKER = np.ones(256, dtype=bool)
_IS_MARKER[[0x00, *range(0xD0, 0xD8), 0xFF]] = False
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)
_BLOCK = 1 << 20  # bytes that are searched at once: a file of nothing but 0xFF bytes must not cost more than its size
# Each scan of a progressive JPEG costs a pass over the whole picture, however few bytes it has. Encoders write some 10.
MAX_SCANS = 100
# What may follow picture data: tables and a further scan (DHT, DAC, SOS, DQT, DNL, DRI), APP0..APP15, a comment.
_BETWEEN_SCANS = frozenset((0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE))


# The formats by their first bytes. TGA has none, and JPEG 2000 and AVIF have theirs further behind.
_STARTS = (
    (JPEG_START, "JPEG"),
    (PNG_START, "PNG"),
    (b"RIFF", "WebP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of the regular file `path`.

    Raises:
        BadImageError: it is missing, no regular file, has more than `max_bytes`, or still cannot be read at the third
            try.
        TooManyFilesError: no further file can be opened.
    """
    for delay in (*RETRY_DELAYS, None):
        try:
            return _read(path, max_bytes)
        except MemoryError as error:
            raise BadImageError(path, "not enough memory to read it") from error
        except OSError as error:
            if is_out_of_files(error):
                raise TooManyFilesError(os.fspath(path)) from error
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


def file_format(data: bytes) -> str:
    """Return the format by the first bytes: JPEG, PNG, WebP, GIF, BMP or TIFF; empty for another."""
    for start, name in _STARTS:
        if data.startswith(start) and (name != "WebP" or data[8:12] == b"WEBP"):
            return name
    return ""


def describe_unknown(data: bytes) -> str:
    """The cause for a file whose header no decoder knows."""
    if name := file_format(data):
        return f"damaged or cut off: the header of the {name} file cannot be read, or promises no pixels"
    first_bytes = data[:12].decode("ascii", "replace")
    return f"not an image in a known format: the file starts with {first_bytes!a}"


def check_whole(data: bytes) -> None:
    """Raise ImageError if `data` is empty, or a JPEG, PNG or WebP file that is cut off or damaged.

    A JPEG carries no checksum: bytes that were changed inside its picture data cannot be seen.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    if data.startswith(JPEG_START):
        _check_jpeg(data)
    elif data.startswith(PNG_START):
        _check_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte of the type, first byte of the checksum) of each chunk of a PNG up to IEND.

    Raises:
        ImageError: the file ends within a chunk or before IEND.
    """
    position = len(PNG_START)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        checksum = position + 8 + length
        if checksum + 4 > len(data):
            break
        yield kind, position + 4, checksum
        if kind == b"IEND":
            return
        position = checksum + 4
    raise ImageError(f"truncated: the PNG file ends after {len(data)} bytes, before its end chunk")


def _check_jpeg(data: bytes) -> None:
    """Walk the segments and the picture data up to the end marker, without decoding; 30 us per 100 KB."""
    num_scans = 0
    position = 2
    for start in _jpeg_markers(data):
        if start < position:
            continue  # within a segment, such as the thumbnail in an EXIF block
        code, position = data[start + 1], start + 2
        if code == _END_OF_IMAGE and num_scans:
            return  # Cameras may append other data.
        if num_scans and code not in _BETWEEN_SCANS:
            # Decoders stop here; some of them fill the rest of the picture with grey.
            raise ImageError(f"damaged: marker 0xFF{code:02X} within the JPEG picture data at byte {start}")
        if code == _START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise ImageError(f"more than {MAX_SCANS} scans in a JPEG, which would take very long to decode")
        if code not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    raise ImageError(f"truncated: the JPEG file ends after {len(data)} bytes, before its end marker")


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Where an 0xFF stands before a byte that makes it a marker, from the start of `data` on."""
    values = np.frombuffer(data, np.uint8)
    for first in range(0, len(data) - 1, _BLOCK):
        block = values[first : first + _BLOCK + 1]
        starts = np.flatnonzero(block[:-1] == 0xFF)
        yield from (starts[_IS_MARKER[block[starts + 1]]] + first).tolist()


def _check_png(data: bytes) -> None:
    view = memoryview(data)
    for kind, start, checksum in png_chunks(data):
        if kind in PNG_CHECKED_CHUNKS:
            stored = int.from_bytes(view[checksum : checksum + 4], "big")
            if zlib.crc32(view[start:checksum]) != stored:
                raise ImageError(f"damaged: the checksum of PNG chunk {kind.decode()} does not match")


def _check_webp(data: bytes) -> None:
    expected = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < expected:
        raise ImageError(f"truncated: the WebP file says it has {expected} bytes, but ends after {len(data)}")
