"""The checksum at the end of a checkpoint: a zip comment with the digest of every byte before it.

    zip archive of torch.save | length of the comment (2 bytes) | comment: FOOTER_MARK and 64 hex digits

Readers of zip archives skip the comment, so `torch.load` and unzip read the file as any other. No byte is left out:
those before the length are in the digest, the length is fixed, and the comment is the digest.

The digest is BLAKE2b (RFC 7693) of 256 bits: about 1.2 GB/s on one core of any 64-bit machine, without the
interpreter's lock. CRC-32 is up to five times as fast, but misses one badly damaged file in 2^32; SHA-256 is faster
where the processor has instructions for it, and takes three times as long where it has none. A digest guards against
damage, not against an author: a hostile file has a right one, too.
"""

import hashlib
import os
from typing import IO

FOOTER_MARK = b"cvtrain-checkpoint blake2b-256 "
_DIGEST_BYTES = 32
FOOTER_BYTES = len(FOOTER_MARK) + 2 * _DIGEST_BYTES
_LENGTH_BYTES = 2
_CHUNK_BYTES = 4 << 20


class DigestWriter:
    """A file to write one zip archive into, that is given its footer by `finish`.

    An error of the disk is kept and raised by `finish`, and what comes after it is dropped: the writer of torch.save,
    which is C++, does not get along with a file that raises.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._tail = b""  # the last bytes so far: at the end of the archive they are the length of the comment
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        size = len(data)
        if self._error is None:
            body = data if size > _LENGTH_BYTES else self._tail + bytes(data)
            if size > _LENGTH_BYTES:
                self._put(self._tail)
            self._put(body[:-_LENGTH_BYTES])
            self._tail = bytes(body[-_LENGTH_BYTES:])
        return size

    def flush(self) -> None:
        """Nothing: `finish` is the end."""

    def finish(self) -> None:
        """Write the footer.

        Raises:
            OSError: something could not be written.
        """
        if self._error is None:
            assert self._tail == bytes(_LENGTH_BYTES), "torch.save ends an archive with an empty comment"
            digest = self._digest.hexdigest().encode()
            self._put(FOOTER_BYTES.to_bytes(_LENGTH_BYTES, "little") + FOOTER_MARK + digest)
        if self._error is not None:
            raise self._error

    def _put(self, data: bytes | memoryview) -> None:
        if self._error is not None or len(data) == 0:
            return
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error


def has_footer(file: IO[bytes], size: int) -> bool:
    """True if `file` of `size` bytes ends with a comment as `DigestWriter` writes it, right or wrong."""
    footer = _read_footer(file, size)
    return footer.startswith(FOOTER_BYTES.to_bytes(_LENGTH_BYTES, "little") + FOOTER_MARK)


def digest_matches(file: IO[bytes], size: int) -> bool:
    """True if the bytes of `file` are those that were written. Reads all of it, 4 MiB at a time."""
    stated = _read_footer(file, size)[-2 * _DIGEST_BYTES :]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    left = size - FOOTER_BYTES - _LENGTH_BYTES
    file.seek(0)
    while left > 0:
        chunk = file.read(min(_CHUNK_BYTES, left))
        if not chunk:
            return False
        digest.update(chunk)
        left -= len(chunk)
    return stated == digest.hexdigest().encode()


def _read_footer(file: IO[bytes], size: int) -> bytes:
    file.seek(max(0, size - FOOTER_BYTES - _LENGTH_BYTES), os.SEEK_SET)
    return file.read(FOOTER_BYTES + _LENGTH_BYTES)
