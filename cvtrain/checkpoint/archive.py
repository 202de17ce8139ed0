"""What a checkpoint's zip archive may look like, checked before anything in it is unpacked or trusted.

torch.save writes stored (not compressed) members under one folder, in a row, without gaps that could overlap. All else
is refused: compressed members that grow when they are unpacked, members that share their bytes, names that lead out of
the archive, and directories that two readers could understand differently.
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from typing import IO

from cvtrain.checkpoint.checksum import FOOTER_BYTES

_END = struct.Struct("<4s4H2LH")  # end of central directory: signature, disks, entries, size, offset, comment length
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LOCAL_HEADER_BYTES = 30
_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_PICKLE_BYTES = 32 << 20
_MEMBER = re.compile(
    r"(?P<folder>[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200})/"
    r"(?:data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/(?P<key>\d{1,9}))"
)


class ArchiveError(ValueError):
    """Why an archive is refused, as the end of a sentence."""


@dataclass(frozen=True)
class Archive:
    """What is needed of an archive to judge its tensors."""

    pickle: bytes
    storage_bytes: dict[str, int]  # size of each member data/KEY, by KEY


def read_archive(file: IO[bytes], size: int) -> Archive:
    """Check the zip archive in `file`, which is `size` bytes long and ends with a footer, and read its pickle.

    Raises:
        ArchiveError: it is not as torch.save writes it.
    """
    end = _check_directory(file, size)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as opened:
            members = opened.infolist()
            folder = _check_members(members, end)
            pickle = opened.read(f"{folder}/data.pkl")
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"holds a damaged zip archive ({error})") from error
    prefix = f"{folder}/data/"
    storage_bytes = {
        member.filename.removeprefix(prefix): member.file_size
        for member in members
        if member.filename.startswith(prefix)
    }
    return Archive(pickle=pickle, storage_bytes=storage_bytes)


def _check_directory(file: IO[bytes], size: int) -> int:
    """Where the central directory starts. It has to end where the record of its end begins, and that at the footer."""
    end_at = size - FOOTER_BYTES - _END.size
    if end_at < 0:
        raise ArchiveError("is too short for an archive")
    file.seek(end_at)
    signature, *_, num_bytes, offset, _ = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6":
        raise ArchiveError("holds no zip archive")
    locator_at = end_at - _LOCATOR_64.size
    if locator_at >= 0:
        file.seek(locator_at)
        locator = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        if locator[0] == b"PK\6\7":
            end_at = locator[2]
            if end_at + _END_64.size != locator_at:
                raise ArchiveError("holds a zip archive with a false end")
            file.seek(end_at)
            signature, *_, num_bytes, offset = _END_64.unpack(file.read(_END_64.size))
            if signature != b"PK\6\6":
                raise ArchiveError("holds a zip archive with a false end")
    if offset + num_bytes != end_at:
        raise ArchiveError("holds a zip archive whose directory is not where it claims to be")
    if num_bytes > _MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"holds a directory of {num_bytes} bytes, more than {_MAX_DIRECTORY_BYTES}")
    return offset


def _check_members(members: list[zipfile.ZipInfo], end: int) -> str:
    """The one folder that all members lie in."""
    folders, names, used = set(), set(), 0
    for member in sorted(members, key=lambda each: each.header_offset):
        name = member.orig_filename
        parts = _MEMBER.fullmatch(name)
        if parts is None or name != member.filename:
            raise ArchiveError(f"holds a member {name[:80]!r}, which no checkpoint has")
        if name in names:
            raise ArchiveError(f"holds two members {name!r}")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ArchiveError(f"holds a compressed member {name!r}, which no checkpoint has")
        if member.header_offset < used:
            raise ArchiveError(f"holds a member {name!r} that overlaps another")
        used = member.header_offset + _LOCAL_HEADER_BYTES + len(name) + member.file_size
        if used > end:
            raise ArchiveError(f"holds a member {name!r} that claims {member.file_size} bytes, more than there are")
        folders.add(parts["folder"])
        names.add(name)
        if name.endswith("/data.pkl") and member.file_size > _MAX_PICKLE_BYTES:
            raise ArchiveError(f"holds {member.file_size} bytes of plain values, more than {_MAX_PICKLE_BYTES}")
    if len(folders) != 1:
        raise ArchiveError("holds not one folder, as a checkpoint does")
    return folders.pop()
