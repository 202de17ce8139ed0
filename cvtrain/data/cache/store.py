"""`ImageFile`: images of any sizes in one file that many processes fill and read at once.

Layout: a header, one record of 24 bytes per image, then the pixels in the order in which they came. The next image
goes at the end of the file, so there is no counter that a killed process could leave wrong. A record carries
a checksum of itself and one of its pixels: it holds either a whole image or none, whenever a process died.

All writes are `pwrite`, which raises when the disk is full; a write through a map would be a bus error. Reads go
through a map, so that all processes share one copy. Nothing here needs torch.
"""

import contextlib
import errno
import json
import mmap
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping
from multiprocessing import reduction
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUPPORTED = fcntl is not None

# Magic, length and CRC-32 of the description (JSON) behind it.
_HEADER = struct.Struct("<8sII")
_MAGIC = b"cvtimgs1"
_MAX_DESCRIPTION = 1 << 20
# Offset in the file, height, width, CRC-32 of the pixels; then the CRC-32 of these.
_BODY = struct.Struct("<qIII")
_CHECK = struct.Struct("<I")  # 0: no image
RECORD_BYTES = _BODY.size + _CHECK.size
_ALIGNMENT = 64
_SHARED_MEMORY = "/dev/shm"

# Reason why nothing more is stored: a number of `errno`, or this.
LIMIT_REACHED = -1


class DamagedCacheError(ValueError):
    """A file that is no cache, has another format, or an incomplete header or index."""


class SharedFile:
    """A file descriptor that child processes have too, forked or spawned; closed with the last reference.

    Args:
        descriptor: open for reading and writing.
        path: where other processes can open the file; empty: nowhere.
    """

    def __init__(self, descriptor: int, path: str | os.PathLike[str] = "") -> None:
        self.descriptor = descriptor
        self.path = os.fspath(path)
        self._closing = weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {"duplicate": reduction.DupFd(self.descriptor), "path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["duplicate"].detach(), state["path"])  # type: ignore[misc]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "SharedFile":
        """Open an existing file. Raises OSError."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)


def memory_file() -> SharedFile:
    """An empty file in memory without a name, gone with the last process that has it open.

    Unlike /dev/shm it is not limited to the 64 MB that containers get. Where the system has no such files (macOS), it
    is a file without a name in the folder for temporary files.
    """
    if hasattr(os, "memfd_create"):
        return SharedFile(os.memfd_create("cvtrain-images"))
    with tempfile.TemporaryFile() as file:
        return SharedFile(os.dup(file.fileno()))


def named_memory_file(num_bytes: int) -> SharedFile:
    """An empty file that other processes of this machine open by its path, before the caller removes that path.

    It is in /dev/shm if `num_bytes` fit there, else in the folder for temporary files.
    """
    folder = _SHARED_MEMORY if _has_room(_SHARED_MEMORY, num_bytes) else None
    return SharedFile(*tempfile.mkstemp(prefix="cvtrain-images-", dir=folder))


def _has_room(folder: str, num_bytes: int) -> bool:
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK) and status.f_bavail * status.f_frsize >= num_bytes


def write_header(descriptor: int, description: Mapping[str, Any], num_images: int) -> None:
    """Write the header of an empty file and make room for the records of `num_images` images.

    Raises:
        OSError: the disk is full.
    """
    text = json.dumps({**description, "num_images": num_images}).encode()
    assert len(text) <= _MAX_DESCRIPTION
    _write_all(descriptor, _HEADER.pack(_MAGIC, len(text), zlib.crc32(text)) + text, 0)
    start, size = _records_start(len(text)), num_images * RECORD_BYTES
    if size > 0 and hasattr(os, "posix_fallocate"):
        # No holes: on a tmpfs that is full, even to read one through a map is a bus error.
        os.posix_fallocate(descriptor, start, size)
    else:
        os.ftruncate(descriptor, start + size)


def read_header(descriptor: int) -> tuple[dict[str, Any], int]:
    """The description in a file, and where its records start.

    Raises:
        DamagedCacheError: it is no such file, or not whole up to the end of the records.
    """
    head = os.pread(descriptor, _HEADER.size, 0)
    if len(head) < _HEADER.size or head[:8] != _MAGIC:
        raise DamagedCacheError("it does not start as a cache of this version")
    _, length, checksum = _HEADER.unpack(head)
    text = os.pread(descriptor, min(length, _MAX_DESCRIPTION), _HEADER.size)
    if len(text) != length or zlib.crc32(text) != checksum:
        raise DamagedCacheError("its header is damaged")
    description = json.loads(text)
    start = _records_start(length)
    if os.fstat(descriptor).st_size < start + description["num_images"] * RECORD_BYTES:
        raise DamagedCacheError("it was cut off")
    return description, start


def _records_start(length: int) -> int:
    return -(-(_HEADER.size + length) // _ALIGNMENT) * _ALIGNMENT


class ImageFile:
    """Images by index in a file that has a header. Can be pickled for a child process.

    Args:
        file: open for reading and writing.
        channels: C of all images.
        capacity: bytes that the file may grow to.
        verify: compare the pixels' checksum when an image is first read in this run; for files that outlive it.
        min_free_bytes: of the disk; nothing is stored that would leave less.
        use: a locked file, kept open as long as this is used.
    """

    def __init__(
        self,
        file: SharedFile,
        *,
        channels: int,
        capacity: int,
        verify: bool,
        min_free_bytes: int = 0,
        use: SharedFile | None = None,
    ) -> None:
        description, self._start = read_header(file.descriptor)
        self.file = file
        self.num_images: int = description["num_images"]
        self.channels = channels
        self.capacity = capacity
        self.verify = verify
        self.min_free_bytes = min_free_bytes
        self.use = use
        self._verified = RawArray("B", max(1, self.num_images))
        self._stopped = RawArray("q", 1)
        self._first_damaged = RawArray("q", 1)
        self._map = self._map_whole()

    def address(self) -> dict[str, Any]:
        """Return the arguments of `at_address` with which another process of this machine opens the same file."""
        return {
            "path": self.file.path,
            "lock_path": None if self.use is None else self.use.path,
            "channels": self.channels,
            "capacity": self.capacity,
            "verify": self.verify,
            "min_free_bytes": self.min_free_bytes,
        }

    @classmethod
    def at_address(cls, *, path: str, lock_path: str | None, **settings: Any) -> "ImageFile":
        """Open the file that another process gave by `address`. Raises OSError or `DamagedCacheError`."""
        use = None
        if lock_path is not None:
            use = SharedFile.open(lock_path)
            fcntl.flock(use.descriptor, fcntl.LOCK_SH)
        return cls(SharedFile.open(path), use=use, **settings)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_map"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._map = self._map_whole()

    # ------------------------------------------------------------------ reading

    def get(self, index: int) -> np.ndarray | None:
        """Image `index` as (H, W, C) uint8, which cannot be written; None if it is not stored, or damaged."""
        position = self._start + index * RECORD_BYTES
        record = self._map[position : position + RECORD_BYTES]
        checksum = _CHECK.unpack(record[_BODY.size :])[0]
        if checksum == 0:
            return None
        pixels = self._pixels(index, record[: _BODY.size], checksum)
        if pixels is None:
            self._first_damaged[0] = self._first_damaged[0] or index + 1
        return pixels

    def _pixels(self, index: int, body: bytes, checksum: int) -> np.ndarray | None:
        """Return the image of a record; None if the record or the pixels are damaged."""
        if checksum != zlib.crc32(body, index):
            return None
        offset, height, width, pixels_checksum = _BODY.unpack(body)
        size = height * width * self.channels
        if offset + size > len(self._map):
            self._map = self._map_whole()  # it has grown
            if offset + size > len(self._map):
                return None
        pixels = np.frombuffer(self._map, np.uint8, size, offset)
        if self.verify and not self._verified[index]:
            if zlib.crc32(pixels.data) != pixels_checksum:
                return None
            self._verified[index] = 1
        return pixels.reshape(height, width, self.channels)

    def _map_whole(self) -> mmap.mmap:
        return mmap.mmap(self.file.descriptor, 0, access=mmap.ACCESS_READ)

    # ------------------------------------------------------------------ writing

    def put(self, index: int, pixels: np.ndarray) -> None:
        """Store (H, W, C) uint8 as image `index`, unless it is there by now or there is no room; never raises OSError.

        Two processes that store one image at the same moment cost its room twice, and nothing else.
        """
        if self._stopped[0] or self.get(index) is not None:
            return
        contiguous = np.ascontiguousarray(pixels)
        try:
            offset = self._allocate(contiguous.nbytes)
            if offset is None:
                return
            _write_all(self.file.descriptor, contiguous.reshape(-1).data, offset)
            self._publish(index, offset, contiguous)
        except OSError as error:
            self._stopped[0] = error.errno or errno.EIO

    def _publish(self, index: int, offset: int, pixels: np.ndarray) -> None:
        """Write the record. Its checksum, 4 aligned bytes, is cleared first and written last: 0 means no record."""
        body = _BODY.pack(offset, *pixels.shape[:2], zlib.crc32(pixels.data) if self.verify else 0)
        position = self._start + index * RECORD_BYTES
        descriptor = self.file.descriptor
        with self._locked():
            _write_all(descriptor, bytes(_CHECK.size), position + _BODY.size)
            _write_all(descriptor, body, position)
            _write_all(descriptor, _CHECK.pack(zlib.crc32(body, index)), position + _BODY.size)
        self._verified[index] = 1

    def _allocate(self, size: int) -> int | None:
        """Take `size` bytes at the end of the file; None if there is no room for them."""
        descriptor = self.file.descriptor
        if self.min_free_bytes:
            disk = os.fstatvfs(descriptor)
            if disk.f_bavail * disk.f_frsize - size < self.min_free_bytes:
                self._stopped[0] = errno.ENOSPC
                return None
        with self._locked():
            offset = os.fstat(descriptor).st_size
            if offset + size > self.capacity:
                self._stopped[0] = LIMIT_REACHED
                return None
            os.ftruncate(descriptor, offset + size)
            return offset

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A lock on one byte of the file, held per process, which the system takes back when its holder dies; 2 us."""
        fcntl.lockf(self.file.descriptor, fcntl.LOCK_EX, 1, 0)
        try:
            yield
        finally:
            fcntl.lockf(self.file.descriptor, fcntl.LOCK_UN, 1, 0)

    # ------------------------------------------------------------------ state

    @property
    def stopped(self) -> int:
        """Reason why nothing more is stored in this run: 0 (none), `LIMIT_REACHED` or a number of `errno`."""
        return int(self._stopped[0])

    @property
    def first_damaged(self) -> int | None:
        """The image whose damage was seen first in this run."""
        return int(self._first_damaged[0]) - 1 if self._first_damaged[0] else None

    @property
    def num_bytes(self) -> int:
        """Length of the file."""
        return os.fstat(self.file.descriptor).st_size

    def count(self) -> int:
        """Images that are stored, whole or damaged."""
        raw = np.frombuffer(self._map, np.uint8, self.num_images * RECORD_BYTES, self._start)
        return int(raw.reshape(-1, RECORD_BYTES)[:, _BODY.size :].any(axis=1).sum())


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
