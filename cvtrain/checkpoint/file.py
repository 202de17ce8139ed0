"""One checkpoint file: written whole or not at all, and read without trusting it."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from cvtrain.checkpoint.archive import ArchiveError, read_archive
from cvtrain.checkpoint.checksum import DigestWriter, digest_matches, has_footer
from cvtrain.checkpoint.claims import ClaimError, TensorClaim, read_claims
from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.state import FORMAT, FORMAT_VERSION, entry_problem, to_cpu
from cvtrain.runtime.files import atomic_write, fsync_dir, temporary_path

_FOREIGN_REMEDY = "to start training from a state dict use model.weights=PATH"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` so that a reader finds the old file or the new one, never a part.

    The new file is on disk and was read back from there before it takes the old one's place.

    Raises:
        SnapshotError: `state` holds more than tensors and plain values.
        CheckpointError: what was read back is not what was written, or no checkpoint; the old file is untouched.
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    write_snapshot(path, to_cpu(state))


def write_snapshot(
    path: Path,
    snapshot: dict[str, Any],
    *,
    look_inside: bool = True,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """`save_checkpoint` for what `to_cpu` gave, without another copy.

    Args:
        look_inside: read the new file as `load_checkpoint` would, short of making tensors; else only its checksum is
            read back. Takes some milliseconds of Python, which a run need not spend on files of one kind again.
        before_rename: called when the new file is good and the old one still in its place.
    """
    problem = entry_problem(snapshot, torch.Tensor)
    if problem is not None:
        raise CheckpointError(path, f"what was to be written {problem}")

    def check(temporary: Path) -> None:
        try:
            if look_inside:
                inspect_checkpoint(temporary)
            else:
                _check_digest(temporary)
        except CheckpointError as error:
            raise CheckpointError(path, f"what was written {error.rule}", error.remedy) from error
        before_rename()

    with atomic_write(path, text=False, before_rename=check) as file:
        writer = DigestWriter(file)
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **snapshot}, cast(IO[bytes], writer))
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
            _copy(source, temporary)
        before_rename()
        temporary.replace(path)
    finally:
        # renaming one name of a file to another name of it does nothing, and leaves both
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, target.open("xb") as copy:
        shutil.copyfileobj(original, copy, 4 << 20)
        copy.flush()
        os.fsync(copy.fileno())
    inspect_checkpoint(target)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Runs no code from it, whatever it holds, and takes no more memory than its size.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it is no checkpoint of cvtrain's.
    """
    return _read(path, load=True)


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """The entries of a checkpoint with a `TensorClaim` in place of each tensor, after every check of `load_checkpoint`.

    Reads the whole file, from the disk where the system lets us choose, and keeps only the plain values.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return _read(path, load=False)


def _read(path: Path, *, load: bool) -> dict[str, Any]:
    if not path.is_file():
        rule = "is a folder, not a checkpoint file" if path.is_dir() else "there is no such file"
        raise CheckpointError(path, rule)
    try:
        with path.open("rb") as file:
            if not load:
                _forget_cached(file)
            claims = _check(path, file)
            if not load:
                return claims
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (ArchiveError, ClaimError) as error:
        raise CheckpointError(path, str(error), _FOREIGN_REMEDY) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch raises many types here, for what only an adversary gets past the checks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(path, f"cannot be read ({reason})") from error


def _check_digest(path: Path) -> None:
    """Read the checksum and what it is of, from the disk."""
    with path.open("rb") as file:
        _forget_cached(file)
        _check_footer(path, file)


def _check_footer(path: Path, file: IO[bytes]) -> int:
    """The size of a file whose content matches its checksum."""
    size = os.fstat(file.fileno()).st_size
    if not has_footer(file, size):
        raise CheckpointError(path, *_kind(file, size))
    if not digest_matches(file, size):
        raise CheckpointError(path, "is damaged: its content does not match its checksum")
    return size


def _check(path: Path, file: IO[bytes]) -> dict[str, Any]:
    """All that can be found out before memory is taken for tensors."""
    archive = read_archive(file, _check_footer(path, file))
    state = read_claims(archive.pickle, archive.storage_bytes)
    if type(state) is not dict or state.get("format") != FORMAT:
        raise CheckpointError(path, "is no checkpoint of cvtrain's", _FOREIGN_REMEDY)
    version = state.get("format_version")
    if type(version) is not int or version > FORMAT_VERSION:
        rule = f"has format version {version}; this cvtrain reads up to {FORMAT_VERSION}"
        raise CheckpointError(path, rule, "install a newer cvtrain")
    problem = entry_problem(state, TensorClaim)
    if problem is not None:
        raise CheckpointError(path, problem)
    return state


def _kind(file: IO[bytes], size: int) -> tuple[str, str]:
    """What a file without a checksum is, and what can be done with it."""
    if size == 0:
        return "is empty", ""
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        return "is no checkpoint of cvtrain's: it does not begin as one", _FOREIGN_REMEDY
    file.seek(max(0, size - 22))
    if file.read(4) == b"PK\5\6":
        return "is no checkpoint of cvtrain's: it has no checksum at its end", _FOREIGN_REMEDY
    return "is cut off or damaged: the checksum at its end is missing", ""


def _forget_cached(file: IO[bytes]) -> None:
    """Let the next reads come from the disk, where it can be had: what was just written is else read from memory."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
