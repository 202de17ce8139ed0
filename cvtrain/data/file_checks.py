"""Is a file whole? Checks on its bytes, the same for every reader, since decoders differ in what they let pass.

OpenCV before 5 fills the missing part of a truncated JPEG with grey, Pillow takes a PNG without its end, and the
PNG decoder of torchvision 0.29 crashes the process on a damaged stream.
"""

import zlib
from collections.abc import Iterator

JPEG_START = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHECKED_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

_START_OF_SCAN = 0xDA
# TEM and RST0..RST7 have no length field.
_BARE_MARKERS = (0x01, *range(0xD0, 0xD8))


def check_whole(data: bytes) -> None:
    """Raise ValueError with the cause if `data` is empty, or a JPEG, PNG or WebP file that is cut off or damaged.

    A JPEG carries no checksum: bytes that were changed inside its picture data cannot be seen.
    """
    if not data:
        raise ValueError("the file is empty (0 bytes)")
    if data.startswith(JPEG_START):
        _check_jpeg(data)
    elif data.startswith(PNG_START):
        _check_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte of the type, first byte of the checksum) of each chunk of a PNG up to IEND.

    Raises:
        ValueError: the file ends within a chunk or before IEND.
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
    raise ValueError(f"truncated: the PNG file ends after {len(data)} bytes, before its end chunk")


def _check_jpeg(data: bytes) -> None:
    # A thumbnail in the EXIF block has an end marker of its own, so only what follows the first scan counts.
    # Picture data escapes 0xFF, so an end marker there is one; cameras may append other data after it.
    scan = _find_scan(data)
    if scan is None or data.rfind(JPEG_END, scan) < 0:
        raise ValueError(f"truncated: the JPEG file ends after {len(data)} bytes, before its end marker")


def _find_scan(data: bytes) -> int | None:
    """Position of the first start-of-scan marker, or of the first byte that is no marker; None if the file ends."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return position
        marker = data[position + 1]
        if marker == _START_OF_SCAN:
            return position
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _check_png(data: bytes) -> None:
    view = memoryview(data)
    for kind, start, checksum in png_chunks(data):
        if kind in PNG_CHECKED_CHUNKS:
            stored = int.from_bytes(view[checksum : checksum + 4], "big")
            if zlib.crc32(view[start:checksum]) != stored:
                raise ValueError(f"damaged: the checksum of PNG chunk {kind.decode()} does not match")


def _check_webp(data: bytes) -> None:
    expected = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < expected:
        raise ValueError(f"truncated: the WebP file says it has {expected} bytes, but ends after {len(data)}")
