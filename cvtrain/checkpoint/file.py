"""One checkpoint file: written whole or not at all, and read without trusting it.

    zip archive of torch.save | length of the comment (2 bytes) | comment: CHECKSUM_MARK and 64 hex digits

Readers of zip archives skip the comment, so `torch.load` and unzip read the file as any other. The checksum is BLAKE2b
(RFC 7693, 256 bits, about 1.2 GB/s on one core) of every byte before the comment's length. It guards against damage,
not against an author: a hostile file has a right one, too. `_read` is what guards against that.
"""

import errno
import hashlib
import logging
import os
import pickletools
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.metadata import FORMAT, FORMAT_VERSION, snapshot, validate_entries
from cvtrain.config.text import first_line
from cvtrain.runtime.files import atomic_write, fsync_dir, temporary_path

log = logging.getLogger(__name__)

CHECKSUM_MARK = b"cvtrain-checkpoint blake2b-256 "
_DIGEST_BYTES = 32
_COMMENT_BYTES = len(CHECKSUM_MARK) + 2 * _DIGEST_BYTES
_LENGTH_BYTES = 2
_CHUNK_BYTES = 4 << 20
_FOREIGN_REMEDY = "to start training from a state dict use model.weights=PATH"

_MAX_PICKLE_BYTES = 32 << 20
_MAX_VALUES = 2_000_000
_MAX_DEPTH = 64
# What the pickle of plain values and tensors names. torch's own list is longer: bytearray(10**11) is on it.
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in [
            "Double",
            "Float",
            "Half",
            "BFloat16",
            "Long",
            "Int",
            "Short",
            "Char",
            "Byte",
            "Bool",
            "ComplexFloat",
            "ComplexDouble",
        ]
    ),
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a reader finds the old file or the new one, never a part.

    The new file is on disk and was read back from there before it takes the old one's place.

    Raises:
        SnapshotError: `state` holds more than tensors and plain values.
        CheckpointError: what was read back is not what was written, or no checkpoint; the old file is untouched.
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    write_snapshot(path, snapshot(state))


def write_snapshot(
    path: Path, entries: dict[str, Any], *, full_check: bool = True, before_rename: Callable[[], None] = lambda: None
) -> None:
    """Write what `snapshot` returned, without another copy; otherwise as `save_checkpoint`.

    Args:
        full_check: read the new file as `load_checkpoint` would; False: only its checksum, which saves some
            milliseconds of Python that a run need not spend on files of one kind again.
        before_rename: called when the new file is good and the old one still in its place.
    """
    problem = validate_entries(entries)
    if problem is not None:
        raise CheckpointError(path, f"what was to be written {problem}")

    def check(temporary: Path) -> None:
        try:
            if full_check:
                inspect_checkpoint(temporary)
            else:
                _check_content(temporary)
        except CheckpointError as error:
            raise CheckpointError(path, f"what was written {error.rule}", error.remedy) from error
        before_rename()

    with atomic_write(path, text=False, before_rename=check) as file:
        writer = _ChecksumWriter(file)
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **entries}, cast(IO[bytes], writer))
        writer.finish()


def link_checkpoint(source: Path, path: Path, *, before_rename: Callable[[], None] = lambda: None) -> None:
    """Give the checkpoint `source` a second name `path`; a copy where the file system has no hard links.

    Raises:
        CheckpointError, OSError: as `save_checkpoint`.
    """
    temporary = temporary_path(path)
    try:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EACCES):
                raise
            with source.open("rb") as original, temporary.open("xb") as copy:
                shutil.copyfileobj(original, copy, _CHUNK_BYTES)
                copy.flush()
                os.fsync(copy.fileno())
            inspect_checkpoint(temporary)
        before_rename()
        temporary.replace(path)
    finally:
        # renaming one name of a file to another name of it does nothing, and leaves both
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


class _ChecksumWriter:
    """A file to write one zip archive into; `finish` gives it the comment with the checksum.

    An error of the disk is kept for `finish`, and what comes after it is dropped: the C++ writer of torch.save does
    not get along with a file that raises.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._tail = b""  # the last bytes so far: at the end of the archive they are the length of the comment
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        size = len(data)
        if size <= _LENGTH_BYTES:
            data = self._tail + bytes(data)
        else:
            self._put(self._tail)
        self._put(data[:-_LENGTH_BYTES])
        self._tail = bytes(data[-_LENGTH_BYTES:])
        return size

    def flush(self) -> None:
        """Do nothing: `finish` is the end."""

    def finish(self) -> None:
        """Write the comment.

        Raises:
            OSError: something could not be written.
        """
        if self._error is None:
            assert self._tail == bytes(_LENGTH_BYTES), "torch.save ends an archive with an empty comment"
            digest = self._digest.hexdigest().encode()
            self._put(_COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little") + CHECKSUM_MARK + digest)
        if self._error is not None:
            raise self._error

    def _put(self, data: bytes | memoryview) -> None:
        if self._error is not None:
            return
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._error = error


# ---------------------------------------------------------------------- reading


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Runs no code from it, and takes no more memory than the size of the file.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain's.
    """
    return _read(path, copy=True)


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with every check of `load_checkpoint`, its tensors mapped from the file and not read.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return _read(path, copy=False)


def _read(path: Path, *, copy: bool) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(path, "is a folder, not a checkpoint file" if path.is_dir() else "there is no such file")
    try:
        has_checksum = _check_content(path)
        _check_archive(path)
        # Mapped, a storage is a part of the file and cannot be resized, whatever the pickle claims of it.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(path, "is no checkpoint of cvtrain's", _FOREIGN_REMEDY)
        _check_values(path, state)
        _check_entries(path, state)
        if not has_checksum:
            log.warning("%s has no checksum: damage to it cannot be noticed (torch.save wrote it, not cvtrain)", path)
        return snapshot(state) if copy else state
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch and zipfile raise many types for what only an adversary writes
        raise CheckpointError(path, f"cannot be read ({first_line(error)})", _FOREIGN_REMEDY) from error


def _check_entries(path: Path, state: dict[str, Any]) -> None:
    version = state.get("format_version")
    if type(version) is not int or version > FORMAT_VERSION:
        rule = f"has format version {version}; this cvtrain reads up to {FORMAT_VERSION}"
        raise CheckpointError(path, rule, "install a newer cvtrain")
    problem = validate_entries(state)
    if problem is not None:
        raise CheckpointError(path, problem)


def _check_content(path: Path) -> bool:
    """Compare the file with its checksum, read from the disk where the system lets us choose; False if it has none."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # what was just written is else read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(file.fileno()).st_size
        left = max(0, size - _COMMENT_BYTES - _LENGTH_BYTES)
        file.seek(left)
        footer = file.read()
        file.seek(0)
        if not footer.startswith(_COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little") + CHECKSUM_MARK):
            _refuse_damage(path, size, begin=file.read(4), footer=footer)
            return False
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
    if left or footer[-2 * _DIGEST_BYTES :] != digest.hexdigest().encode():
        raise CheckpointError(path, "is damaged: its content does not match its checksum")
    return True


def _refuse_damage(path: Path, size: int, *, begin: bytes, footer: bytes) -> None:
    """Raise for a file without a checksum, unless it is a zip archive with its end, as torch.save leaves it."""
    if size == 0:
        raise CheckpointError(path, "is empty")
    if begin != b"PK\3\4":
        raise CheckpointError(path, "is no checkpoint of cvtrain's: it does not begin as one", _FOREIGN_REMEDY)
    if not (footer[-22:-18] == b"PK\5\6" and footer.endswith(b"\0\0")):
        raise CheckpointError(path, "is cut off or damaged: the checksum at its end is missing")


def _check_archive(path: Path) -> None:
    """Refuse an archive whose records claim more than the file holds, or whose pickle asks for more than tensors."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
            raise CheckpointError(path, "holds compressed records, which no checkpoint has")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise CheckpointError(path, "holds records that claim more bytes than the file has")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(set(names)) != len(names) or len(pickles) != 1:
            raise CheckpointError(path, "is no checkpoint of cvtrain's: its records are not those", _FOREIGN_REMEDY)
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise CheckpointError(path, f"holds more than {_MAX_PICKLE_BYTES >> 20} MiB of plain values")
        pickle = archive.read(pickles[0])
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
        if count > _MAX_VALUES:
            raise CheckpointError(path, f"holds more than {_MAX_VALUES} plain values")
        if operation.name == "GLOBAL" and argument not in _GLOBALS:
            shown = str(argument).replace(" ", ".")[:80]
            raise CheckpointError(path, f"holds more than tensors and plain values ({shown})", _FOREIGN_REMEDY)


def _check_values(path: Path, state: dict[str, Any]) -> None:
    """Refuse what is small in the file and large once it is copied: deep, circular, or shared many times."""
    limit = 2 * path.stat().st_size  # weights that a user has put under a second name are shared once
    waiting: list[tuple[Any, int]] = [(state, 0)]
    count = num_bytes = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            rule = f"is nested more than {_MAX_DEPTH} deep, or repeats itself more than {_MAX_VALUES} times"
            raise CheckpointError(path, rule)
        if isinstance(value, torch.Tensor):
            num_bytes += value.numel() * value.element_size()
            if num_bytes > limit or value.dim() > _MAX_DEPTH:
                raise CheckpointError(
                    path, f"claims tensors of more than {limit} bytes (twice the file) or {_MAX_DEPTH} dims"
                )
        elif isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend((item, depth + 1) for item in value)
        elif not (value is None or type(value) in (str, int, float, bool)):
            raise CheckpointError(path, f"holds more than tensors and plain values ({type(value).__name__})")
