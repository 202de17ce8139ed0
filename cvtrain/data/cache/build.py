"""From the config to cached splits."""

import functools
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvtrain.config.schema.data import DataCache, DataConfig, FileDataConfig
from cvtrain.data.cache.budget import choose, disk_reserve, free_memory, memory_budget, split_budget
from cvtrain.data.cache.fingerprint import Fingerprint, compute_fingerprint, describe_pixels, describe_resize
from cvtrain.data.cache.folder import CacheFolder, default_folder
from cvtrain.data.cache.monitor import CachedBatchLoader, CacheMonitor
from cvtrain.data.cache.source import CachedSource, ImageStore, NullStore
from cvtrain.data.cache.store import (
    RECORD_BYTES,
    SUPPORTED,
    DamagedCacheError,
    ImageFile,
    memory_file,
    named_memory_file,
    write_header,
)
from cvtrain.data.images.reader import known_formats
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup

log = logging.getLogger(__name__)

# Headers that are read to estimate the size of all images: some 0.1 ms each.
_SAMPLE = 64


def cache_splits(
    config: DataConfig,
    splits: Splits,
    *,
    train_resize: EvalTransform,
    eval_resize: EvalTransform,
    world: ProcessGroup = SINGLE_PROCESS,
) -> Splits:
    """The same splits, whose train and val images are decoded once, where they are files.

    With `data.cache=none` nothing changes. Otherwise images are shrunk by the two resizes, whether there is room to
    keep them or not, so that the pixels of a run do not depend on the machine. The test split is read once in a run, as
    it is: keeping it would not pay.
    """
    if not isinstance(config, FileDataConfig) or config.cache is DataCache.none:
        return splits
    parts = {
        split: Part(source, resize, estimate_bytes(source, resize, config.channels))
        for split, source, resize in (("train", splits.train, train_resize), ("val", splits.val, eval_resize))
        if isinstance(source, FileSource)
    }
    if not parts:
        return splits
    stores, location = _open_on_machine(config, parts, world)
    cached = {
        split: CachedSource(part.source, part.resize, stores[split], split=split, location=location)
        for split, part in parts.items()
    }
    return replace(splits, **cached)  # type: ignore[arg-type]


def build_loader(*, dataset: BatchDataset, **settings: Any) -> BatchLoader:
    """Build a `BatchLoader` of `dataset`, one that logs the state of its cache if it has one."""
    source = dataset.source
    if isinstance(source, CachedSource) and isinstance(source.store, ImageFile):
        monitor = CacheMonitor(source.store, split=source.split, location=source.location)
        return CachedBatchLoader(monitor=monitor, dataset=dataset, **settings)
    return BatchLoader(dataset=dataset, **settings)


@dataclass(frozen=True)
class Part:
    """The files of a split, how they are shrunk, and about how many bytes they then come to."""

    source: FileSource
    resize: EvalTransform
    num_bytes: int


def _open_on_machine(
    config: FileDataConfig, parts: Mapping[str, Part], group: ProcessGroup
) -> tuple[dict[str, ImageStore], str]:
    """Call `_open_stores` once per machine; the other ranks open the files of its first rank."""
    if group.world_size == 1:
        return _open_stores(config, parts)
    is_first = group.local_rank == 0
    stores, location = _open_stores(config, parts, named=True) if is_first else ({}, "")
    files = {split: store for split, store in stores.items() if isinstance(store, ImageFile)}
    try:
        own = ({split: file.address() for split, file in files.items()}, location) if is_first else None
        opened = {node: found for node, found in group.all_gather((group.node, own)) if found is not None}
        addresses, location = opened[group.node]
        if not is_first:
            stores = {split: _open_address(addresses.get(split)) for split in parts}
        group.barrier()  # every rank has opened its files
    finally:
        for file in files.values():
            if file.use is None:  # in memory: the open descriptors keep it
                Path(file.file.path).unlink(missing_ok=True)
    return stores, location


def _open_address(address: Mapping[str, Any] | None) -> ImageStore:
    try:
        return NullStore() if address is None else ImageFile.at_address(**address)
    except (OSError, DamagedCacheError) as error:
        log.warning("cache: none: that of another rank cannot be opened, images are decoded in each epoch: %s", error)
        return NullStore()


def _open_stores(
    config: FileDataConfig, parts: Mapping[str, Part], *, named: bool = False
) -> tuple[dict[str, ImageStore], str]:
    """Return a store for each part and their location in words. Logs the choice, or why there is none."""
    nothing: dict[str, ImageStore] = {split: NullStore() for split in parts}
    if not SUPPORTED:
        log.warning("cache: none: this system cannot share images between processes")
        return nothing, ""
    limit = None if config.cache_limit_gib is None else int(config.cache_limit_gib * 2**30)
    folder = CacheFolder(Path(config.cache_dir).expanduser() if config.cache_dir else default_folder())
    memory = memory_budget(limit, free_memory())

    @functools.cache
    def prints() -> dict[str, Fingerprint]:
        return {split: compute_fingerprint(part.source, part.resize) for split, part in parts.items()}

    num_bytes = sum(part.num_bytes for part in parts.values())

    def disk_room() -> int:
        # The cheap bound first: the exact one needs the size and time of each of perhaps millions of files.
        most = folder.most_room(limit)
        if num_bytes > most:
            return most
        return folder.room([fingerprint.key for fingerprint in prints().values()], limit)

    try:
        choice = choose(config.cache, num_bytes=num_bytes, memory=memory, disk_room=disk_room)
        if choice.kind is DataCache.ram:
            location, stores = "in RAM", _open_in_memory(parts, config.channels, memory, named=named)
        elif choice.kind is DataCache.disk:
            location = f"on disk in {folder.path}"
            stores = _open_on_disk(folder, parts, prints(), config.channels, limit)
        else:
            log.info(
                "cache: none: %s; images are decoded and shrunk in each epoch, to the pixels that a cache would hold",
                choice.reason,
            )
            return nothing, ""
    except OSError as error:
        log.warning("cache: none: %s; images are decoded in each epoch", error)
        return nothing, ""
    there = ", ".join(f"{store.count()} of {store.num_images} {split}" for split, store in stores.items())
    log.info("cache: %s: %s%s", location, choice.reason, f"; {there} images are stored" if location != "in RAM" else "")
    return dict(stores), location


def _open_in_memory(parts: Mapping[str, Part], channels: int, room: int, *, named: bool) -> dict[str, ImageFile]:
    capacities = split_budget(room, [part.num_bytes for part in parts.values()])
    stores = {}
    for (split, part), capacity in zip(parts.items(), capacities, strict=True):
        file = named_memory_file(min(capacity, part.num_bytes)) if named else memory_file()
        write_header(file.descriptor, {}, len(part.source))
        stores[split] = ImageFile(file, channels=channels, capacity=capacity, verify=False)
    return stores


def _open_on_disk(
    folder: CacheFolder, parts: Mapping[str, Part], prints: Mapping[str, Fingerprint], channels: int, limit: int | None
) -> dict[str, ImageFile]:
    wanted = {prints[split].key: part.num_bytes for split, part in parts.items()}
    subjects = {fingerprint.subject for fingerprint in prints.values()}
    stores = {}
    with folder.exclusive():
        room = folder.make_room(wanted, subjects, limit)
        capacities = split_budget(room, [part.num_bytes for part in parts.values()])
        for (split, part), capacity in zip(parts.items(), capacities, strict=True):
            reserved = min(part.num_bytes, capacity)
            file, use = folder.open(
                prints[split].key, _describe(split, part, prints[split]), len(part.source), reserved
            )
            reserve = disk_reserve(folder.path)
            stores[split] = ImageFile(
                file, channels=channels, capacity=capacity, verify=True, min_free_bytes=reserve, use=use
            )
    return stores


def _describe(split: str, part: Part, fingerprint: Fingerprint) -> dict[str, Any]:
    """Return the description in the header of a cache."""
    return {
        "subject": fingerprint.subject,
        "root": os.path.realpath(part.source.root),
        "split": split,
        "form": describe_resize(part.resize),
        "pixels": describe_pixels(part.source),
    }


def estimate_bytes(source: FileSource, resize: EvalTransform, channels: int) -> int:
    """Estimate the stored bytes of the images of `source` from the headers of a few of them, spread evenly."""
    sizes = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(np.int64)):
        shape = _read_shape(source.path(int(index)))
        if shape is not None:
            height, width = resize.shrunk_shape(*shape)
            sizes.append(height * width * channels)
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return int(len(source) * (mean + RECORD_BYTES))


def _read_shape(path: str) -> tuple[int, int] | None:
    """Height and width by the header of a file, without regard to its orientation; None if it is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader reports a bad file when it is read
            with Image.open(path, formats=known_formats()) as image:
                return image.height, image.width
    except Exception:  # Pillow raises almost any type on damaged bytes.
        return None
