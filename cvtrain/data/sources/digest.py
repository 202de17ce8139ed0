"""Digests of the images of a run: do all ranks, and both parts of a resumed run, have the same ones?"""

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.data.sources.source import FileSource, ImageSource, Splits
from cvtrain.distributed.process_group import ProcessGroup

log = logging.getLogger(__name__)

# Files whose status one thread reads at a time; threads pay on network disks, and cost nothing on local ones.
_CHUNK = 4096
_THREADS = 8
# Files whose content is compared, evenly spaced over a split, and how much of each: its first and last bytes.
_SAMPLED_FILES = 1024
_SAMPLED_BYTES = 8192


class SplitDigest(TypedDict, total=False):
    """A split in short; digests are hexadecimal, and those of images without files have no `content` and `times`.

    Attributes:
        num_images: how many images it has.
        digest: of paths, sizes in bytes and labels, in order.
        content: of the first and last bytes of up to 1,024 files.
        times: of the times of change (mtime and ctime) of all files.
    """

    num_images: int
    digest: str
    content: str
    times: str


DatasetDigest = dict[str, SplitDigest]


def stat_splits(splits: Splits) -> dict[str, np.ndarray]:
    """Return (N, 3) int64 by split: size in bytes, mtime and ctime in ns of each file, of splits of files."""
    fields = ("st_size", "st_mtime_ns", "st_ctime_ns")
    return {
        split: stat_files(source, fields) for split, source in splits.parts().items() if isinstance(source, FileSource)
    }


def dataset_digest(splits: Splits, states: Mapping[str, np.ndarray] | None = None) -> DatasetDigest:
    """Return the digests of each split.

    A file that is added, removed, renamed, moved to another class or replaced by one of another size changes `digest`;
    one that is replaced by one of the same size changes `times`, and `content` if it is in the sample. The folder that
    holds them all does not count, and a copy of the images on another machine differs in `times` only. Costs one
    `stat` per file, 8 us on a local disk, and reading the sample.

    Args:
        states: what `stat_splits` gave; None: looks itself.
    """
    states = stat_splits(splits) if states is None else states
    return {split: _digest_split(source, splits.classes, states.get(split)) for split, source in splits.parts().items()}


def check_splits_match(own: DatasetDigest, group: ProcessGroup) -> None:
    """Compare the images that each rank has found on its machine.

    Raises:
        ConfigError: on every rank, if some differ: batches would overlap, or a rank would wait for ever.
    """
    if group.world_size == 1:
        return
    found = group.all_gather((group.node, own))
    first = found[0][1]
    for node, theirs in found:
        for split in first.keys() | theirs.keys():
            if not _same_images(first.get(split), theirs.get(split)):
                here, there = (part[split]["num_images"] if split in part else 0 for part in (first, theirs))
                raise ConfigError(
                    "data",
                    rule=f"the ranks of this run have found different images: rank 0 has {here} in split {split}, "
                    f"a rank on machine {node} has {there}{', others or in other classes' * (here == there)}",
                    remedy="give all machines the same files, or a file system that they share",
                )


def check_unchanged(
    before: DatasetDigest | None, now: DatasetDigest, *, is_within_epoch: bool, allow_changed: bool
) -> None:
    """Compare the images with those of the run so far: within an epoch, its position is one in their order.

    Times alone are no proof, since a copy of the images has others: they only cause a warning.

    Args:
        before: of the checkpoint; None for one that has no digest.
        is_within_epoch: the checkpoint was taken after some batches of an epoch.
        allow_changed: warn only.

    Raises:
        ConfigError: train or val differ within an epoch.
    """
    if before is None:
        return
    changes = describe_changes(before, now)
    if changes and is_within_epoch and not allow_changed:
        raise ConfigError(
            key="resume_on_changed_data",
            value=False,
            rule=f"the images have changed since the checkpoint ({changes}), which was taken within an epoch: "
            "some would be seen twice in this epoch, others not at all",
            remedy="put the images back as they were, or set resume_on_changed_data=true",
        )
    if changes:
        log.warning(
            "the images have changed since the checkpoint (%s): from here on the run uses the new ones", changes
        )
        return
    touched = [split for split in ("train", "val") if _times_differ(before[split], now[split])]
    if touched:
        log.warning(
            "image files of %s have other times than at the checkpoint; names, sizes and the content of %s are the "
            "same, as of a copy",
            " and ".join(touched),
            " and ".join(_sample_in_words(now[split]["num_images"]) for split in touched),
        )


def describe_changes(before: DatasetDigest, now: DatasetDigest) -> str:
    """Return what differs in train and val in words, such as `train: 244 images before, 245 now`; empty if nothing."""
    changes = []
    for split in ("train", "val"):
        if not _same_images(before[split], now[split]):
            old, new = before[split]["num_images"], now[split]["num_images"]
            if old != new:
                detail = f"{new} now"
            elif before[split]["digest"] != now[split]["digest"]:
                detail = "as many now, but other files, sizes or classes"
            else:
                detail = "the same names and sizes now, but other content"
            changes.append(f"{split}: {old} images before, {detail}")
    return "; ".join(changes)


def _same_images(one: SplitDigest | None, other: SplitDigest | None) -> bool:
    """False if names, sizes, labels or the sampled content differ; older checkpoints have no `content`."""
    if one is None or other is None:
        return one is other
    unknown = "content" not in one or "content" not in other
    return one["digest"] == other["digest"] and (unknown or one["content"] == other["content"])


def _times_differ(one: SplitDigest, other: SplitDigest) -> bool:
    return "times" in one and one["times"] != other.get("times")


def _sample_in_words(num_files: int) -> str:
    return f"all {num_files}" if num_files <= _SAMPLED_FILES else f"{_SAMPLED_FILES} of {num_files}"


def stat_files(source: FileSource, fields: tuple[str, ...]) -> np.ndarray:
    """(N, len(fields)) int64: attributes of `os.stat` of each file, such as `st_size`; -1 for a file that is gone."""

    def read(first: int) -> np.ndarray:
        values = np.full((min(_CHUNK, len(source) - first), len(fields)), -1, np.int64)
        for row in range(len(values)):
            try:
                status = os.stat(source.path(first + row))  # noqa: PTH116 (no Path object per image)
            except OSError:
                continue
            # Inodes are unsigned and may have 64 bits.
            values[row] = [getattr(status, field) & 0x7FFF_FFFF_FFFF_FFFF for field in fields]
        return values

    with ThreadPoolExecutor(_THREADS) as threads:
        chunks = threads.map(read, range(0, len(source), _CHUNK))
        return np.concatenate([np.zeros((0, len(fields)), np.int64), *chunks])


def _digest_split(source: ImageSource, classes: tuple[str, ...], state: np.ndarray | None) -> SplitDigest:
    digest = hashlib.blake2b("\n".join(classes).encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(np.ascontiguousarray(source.labels, dtype=np.int64).data)
    if not isinstance(source, FileSource) or state is None:
        return {"num_images": len(source), "digest": digest.hexdigest()}
    digest.update(np.ascontiguousarray(source.paths.buffer).data)
    digest.update(np.ascontiguousarray(source.paths.offsets).data)
    digest.update(state[:, 0].tobytes())
    times = hashlib.blake2b(state[:, 1:].tobytes(), digest_size=16)
    return {
        "num_images": len(source),
        "digest": digest.hexdigest(),
        "content": _digest_content(source),
        "times": times.hexdigest(),
    }


def _digest_content(source: FileSource) -> str:
    """Digest the first and last bytes of evenly spaced files; one that cannot be read counts as empty."""
    indices = np.linspace(0, len(source) - 1, min(len(source), _SAMPLED_FILES)).astype(np.int64)
    content = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(_THREADS) as threads:
        for ends in threads.map(_read_ends, [source.path(index) for index in indices.tolist()]):
            content.update(hashlib.blake2b(ends, digest_size=16).digest())
    return content.hexdigest()


def _read_ends(path: str) -> bytes:
    try:
        if not os.path.isfile(path):  # noqa: PTH113 (a pipe would block)
            return b""
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            head = file.read(_SAMPLED_BYTES)
            file.seek(max(len(head), os.fstat(file.fileno()).st_size - _SAMPLED_BYTES))
            return head + file.read(_SAMPLED_BYTES)
    except OSError:
        return b""
