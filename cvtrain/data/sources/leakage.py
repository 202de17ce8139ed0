"""Exact copies across splits: files with the same bytes in train and in val or test, which make figures too good.

Near copies are for `cvtrain check`, which decodes every image. Here a file is read only if another split has one of the
same size, and as a whole only if their last bytes are the same, too.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import DataConfig, FileDataConfig, OnLeakage, QuickCheck
from cvtrain.config.text import display_list
from cvtrain.data.sources.digest import stat_splits
from cvtrain.data.sources.source import FileSource, Splits

log = logging.getLogger(__name__)

_KEY = "data.on_leakage"
_THREADS, _CHUNK = 8, 1024
_TAIL_BYTES = 1024
_BLOCK_BYTES = 1 << 20
# Files that a warning is worth opening at the start of a run: 8,500 took 0.3 to 0.5 s on two busy cores.
MOST_OPENED = 20_000
SHOWN = 3


@dataclass(frozen=True)
class Leak:
    """An image of val or test, and one of another split whose file has the same bytes.

    Attributes:
        split, index: the image of val or test.
        partner_split, partner: the other one: of train, or of test for an image of val.
    """

    split: str
    index: int
    partner_split: str
    partner: int


def find_leaks(
    splits: Splits, states: Mapping[str, np.ndarray] | None = None, *, most_opened: int | None = None
) -> list[Leak] | None:
    """Return a leak for each image of val with a copy in train, else in test; and of test with a copy in train.

    Sources without files have none. A file that cannot be read is no copy.

    Args:
        states: what `stat_splits` gave; None: looks itself.
        most_opened: give up if more files than this would have to be opened, and return None.
    """
    sources = {name: part for name, part in splits.parts().items() if isinstance(part, FileSource)}
    if len(sources) < 2:
        return []
    names = list(sources)
    part_ids = np.repeat(np.arange(len(names)), [len(sources[name]) for name in names])
    starts = np.cumsum([0, *(len(sources[name]) for name in names)])
    states = stat_splits(splits) if states is None else states
    sizes = np.concatenate([states[name][:, 0] for name in names])

    def path(row: int) -> str:
        part = int(part_ids[row])
        return sources[names[part]].path(row - int(starts[part]))

    rows = _shared(sizes, part_ids, np.flatnonzero(sizes > 0))
    if most_opened is not None and len(rows) > most_opened:
        return None
    keys = sizes.astype(np.uint64)
    for read in (_digest_tail, _digest_file):
        keys, rows = _with_content(keys, rows, path, read)
        rows = _shared(keys, part_ids, rows)
    # By content, in the order of splits: train, val, test.
    order = rows[np.lexsort((rows, keys[rows]))]
    groups = np.split(order, np.flatnonzero(np.diff(keys[order].astype(np.uint64)) != 0) + 1) if len(order) else []
    leaks = []
    for group in groups:
        first = {int(part_ids[row]): int(row) for row in group[::-1]}
        for row in group.tolist():
            part = int(part_ids[row])
            # The partner is one of train, else one of another split; a pair of val and test counts for val.
            partner = next((first[other] for other in sorted(first) if other != part and names[part] != "train"), None)
            if partner is not None and (names[part] == "val" or names[int(part_ids[partner])] == "train"):
                other = int(part_ids[partner])
                leaks.append(Leak(names[part], row - int(starts[part]), names[other], partner - int(starts[other])))
    return sorted(leaks, key=lambda leak: (names.index(leak.split), leak.index))


def drop_leaks_of_val(config: DataConfig, splits: Splits) -> Splits:
    """Return `splits` without the images of val that have a copy in another split, if `data.on_leakage=drop_val`.

    Raises:
        ConfigError: nothing of val would be left.
    """
    if not isinstance(config, FileDataConfig) or config.check is QuickCheck.off:
        return splits
    if config.on_leakage is not OnLeakage.drop_val:
        return splits
    leaks = [leak for leak in find_leaks(splits) or () if leak.split == "val"]
    if not leaks:
        return splits
    val = splits.val
    assert isinstance(val, FileSource)
    kept = np.setdiff1d(np.arange(len(val)), [leak.index for leak in leaks])
    lines = describe_leaks(splits, leaks)
    if len(kept) == 0:
        raise ConfigError(_KEY, config.on_leakage, f"nothing of val would be left: {lines[0]}", "split the images anew")
    taken = val.take(kept)
    lost = sorted({splits.classes[label] for label in set(val.labels.tolist()) - set(taken.labels.tolist())})
    notes = [f"left out of val ({_KEY}=drop_val): {line}" for line in lines]
    notes += [f"classes without images in val, since all were copies: {display_list(lost)}"] if lost else []
    return replace(splits, val=taken, warnings=(*splits.warnings, *notes))


def leak_warnings(config: DataConfig, splits: Splits, states: Mapping[str, np.ndarray] | None = None) -> list[str]:
    """Return lines on the copies across splits, as `data.check` and `data.on_leakage` want.

    Args:
        states: what `stat_splits` gave; None: looks itself.

    Raises:
        ConfigError: there are some, and `data.on_leakage=error`.
    """
    if not isinstance(config, FileDataConfig) or config.check is QuickCheck.off:
        return []
    is_strict = config.on_leakage is not OnLeakage.warn
    leaks = find_leaks(splits, states, most_opened=None if is_strict else MOST_OPENED)
    if leaks is None:
        log.info(
            "data: copies across splits were not looked for: more than %s files have the size of one in another split; "
            "data.on_leakage=error or cvtrain check looks at all",
            f"{MOST_OPENED:,}",
        )
        return []
    lines = describe_leaks(splits, leaks)
    if lines and config.on_leakage is OnLeakage.error:
        remedy = "cvtrain check shows them all; data.on_leakage=drop_val leaves them out of val, data.exclude=FILE any"
        raise ConfigError(_KEY, config.on_leakage, "; ".join(lines), remedy)
    advice = "data.on_leakage=drop_val leaves them out of val; cvtrain check shows them, and near copies"
    return [f"{line}. {advice}" for line in lines]


def describe_leaks(splits: Splits, leaks: list[Leak]) -> list[str]:
    """Return a line for each pair of splits: how many, how many under another label, the first names."""
    parts = splits.parts()
    lines = []
    for split, other in dict.fromkeys((leak.split, leak.partner_split) for leak in leaks):
        found = [leak for leak in leaks if (leak.split, leak.partner_split) == (split, other)]
        mine, theirs = parts[split], parts[other]
        conflicts = sum(mine.labels[leak.index] != theirs.labels[leak.partner] for leak in found)
        names = ", ".join(f"{mine.name(leak.index)} = {theirs.name(leak.partner)}" for leak in found[:SHOWN])
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        labels = f", {conflicts:,} of them under another label" if conflicts else ""
        count = f"{len(found):,} of {len(mine):,} images of {split}"
        lines.append(f"{count} are exact copies of images of {other}{labels}: {names}{more}")
    return lines


def _shared(keys: np.ndarray, part_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return those of `rows` (M,) int64 whose key is there in another part, too."""
    if len(rows) == 0:
        return rows
    order = rows[np.argsort(keys[rows], kind="stable")]
    starts = np.concatenate([[0], np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1])
    parts = part_ids[order]
    is_shared = np.minimum.reduceat(parts, starts) != np.maximum.reduceat(parts, starts)
    return np.sort(order[np.repeat(is_shared, np.diff([*starts, len(order)]))])


def _with_content(
    keys: np.ndarray, rows: np.ndarray, path: Callable[[int], str], read: Callable[[str], int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return keys of what `read` gives of each of `rows`, beside the keys before; and the rows that could be read."""

    def read_chunk(first: int) -> list[int | None]:
        return [read(path(row)) for row in rows[first : first + _CHUNK].tolist()]

    with ThreadPoolExecutor(_THREADS) as threads:
        content = [key for chunk in threads.map(read_chunk, range(0, len(rows), _CHUNK)) for key in chunk]
    is_read = np.array([key is not None for key in content], bool)
    keys = keys.copy()
    keys[rows] ^= np.array([key or 0 for key in content], np.uint64)
    return keys, rows[is_read]


def _digest_tail(path: str) -> int | None:
    return _digest(path, tail=True)


def _digest_file(path: str) -> int | None:
    return _digest(path, tail=False)


def _digest(path: str, *, tail: bool) -> int | None:
    """Return a 64-bit digest of a file or of its last bytes; None if it cannot be read."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if tail:
                size = os.fstat(descriptor).st_size
                os.lseek(descriptor, max(0, size - _TAIL_BYTES), os.SEEK_SET)
            while block := os.read(descriptor, _BLOCK_BYTES):
                digest.update(block)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return int.from_bytes(digest.digest(), "little")
