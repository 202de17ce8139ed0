"""From the config to cached splits."""

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvtrain.config.schema.data import DataCache, DataConfig, FileDataConfig
from cvtrain.data.cache.budget import disk_reserve, free_memory
from cvtrain.data.cache.choice import choose, estimate_bytes, memory_budget, share
from cvtrain.data.cache.fingerprint import Fingerprint, compute_fingerprint, describe_form, describe_pixels
from cvtrain.data.cache.folder import CacheFolder, default_folder
from cvtrain.data.cache.monitor import CachedBatchLoader, CacheMonitor
from cvtrain.data.cache.source import CachedSource, ImageStore, NullStore
from cvtrain.data.cache.store import SUPPORTED, ImageFile, memory_file, write_header
from cvtrain.data.images.resize import EvalTransform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup

log = logging.getLogger(__name__)


def cache_splits(
    config: DataConfig,
    splits: Splits,
    *,
    train_form: EvalTransform,
    eval_form: EvalTransform,
    world: ProcessGroup = SINGLE_PROCESS,
) -> Splits:
    """The same splits, whose train and val images are decoded once, where they are files.

    With `data.cache=none` nothing changes. Otherwise images are shrunk as the forms say, whether there is room to keep
    them or not, so that the pixels of a run do not depend on the machine. The test split is read once in a run, as it
    is: keeping it would not pay.
    """
    if not isinstance(config, FileDataConfig) or config.cache is DataCache.none:
        return splits
    parts = {
        split: Part(source, form, estimate_bytes(source, form, config.channels))
        for split, source, form in (("train", splits.train, train_form), ("val", splits.val, eval_form))
        if isinstance(source, FileSource)
    }
    if not parts:
        return splits
    stores, place = _open_together(config, parts, world)
    cached = {
        split: CachedSource(part.source, part.form, stores[split], split=split, place=place)
        for split, part in parts.items()
    }
    return replace(splits, **cached)  # type: ignore[arg-type]


def build_loader(*, dataset: BatchDataset, **settings: Any) -> BatchLoader:
    """A `BatchLoader` of `dataset`, which tells of its cache if it has one. See `BatchLoader` for the settings."""
    source = dataset.source
    if isinstance(source, CachedSource) and isinstance(source.store, ImageFile):
        watch = CacheMonitor(source.store, split=source.split, place=source.place)
        return CachedBatchLoader(watch=watch, dataset=dataset, **settings)
    return BatchLoader(dataset=dataset, **settings)


@dataclass(frozen=True)
class Part:
    """The files of a split, the form in which they are kept, and about how many bytes they then come to."""

    source: FileSource
    form: EvalTransform
    num_bytes: int


def _open_together(
    config: FileDataConfig, parts: Mapping[str, Part], world: ProcessGroup
) -> tuple[dict[str, ImageStore], str]:
    """As `_open_stores`, once on each machine."""
    if world.world_size == 1:
        return _open_stores(config, parts)
    if not SUPPORTED:
        return _open_stores(config, parts) if world.is_main_process else ({split: NullStore() for split in parts}, "")
    from cvtrain.data.cache.sharing import offer_stores, take_stores

    opened, place = _open_stores(config, parts) if world.local_rank == 0 else (None, "")
    offers, place = offer_stores(opened, place, world)
    stores = take_stores(offers) if opened is None else opened
    world.barrier()  # only then may the process that offers come to its end
    return stores, place


def _open_stores(config: FileDataConfig, parts: Mapping[str, Part]) -> tuple[dict[str, ImageStore], str]:
    """A store for each part, and where they are, in words. Says what was chosen, or why nothing could be."""
    nothing: dict[str, ImageStore] = {split: NullStore() for split in parts}
    if not SUPPORTED:
        log.warning("cache: this system lacks what sharing images between processes needs: nothing is kept")
        return nothing, ""
    limit = None if config.cache_limit_gib is None else int(config.cache_limit_gib * 2**30)
    folder = CacheFolder(Path(config.cache_dir).expanduser() if config.cache_dir else default_folder())
    memory = memory_budget(limit, free_memory())

    @functools.cache
    def prints() -> dict[str, Fingerprint]:
        return {split: compute_fingerprint(part.source, part.form) for split, part in parts.items()}

    num_bytes = sum(part.num_bytes for part in parts.values())

    def disk_room() -> int:
        # Before each of millions of files is asked for its size and time, in vain.
        most = folder.most_room(limit)
        if num_bytes > most:
            return most
        return folder.room([fingerprint.key for fingerprint in prints().values()], limit)

    try:
        choice = choose(config.cache, num_bytes=num_bytes, memory=memory, disk_room=disk_room)
        if choice.kind is DataCache.ram:
            place, stores = "in memory", _open_in_memory(parts, config.channels, memory)
        elif choice.kind is DataCache.disk:
            place = f"on disk in {folder.path}"
            stores = _open_on_disk(folder, parts, prints(), config.channels, limit)
        else:
            log.info(
                "cache: none: %s; images are decoded and shrunk in every epoch, to the pixels that a cache would hold",
                choice.reason,
            )
            return nothing, ""
    except OSError as error:
        log.warning("cache: %s: nothing is kept, images are decoded in every epoch", error)
        return nothing, ""
    there = ", ".join(f"{store.count()} of {store.num_images} {split}" for split, store in stores.items())
    log.info("cache: %s: %s%s", place, choice.reason, f"; {there} images are there" if place != "in memory" else "")
    return dict(stores), place


def _open_in_memory(parts: Mapping[str, Part], channels: int, room: int) -> dict[str, ImageFile]:
    capacities = share(room, [part.num_bytes for part in parts.values()])
    stores = {}
    for (split, part), capacity in zip(parts.items(), capacities, strict=True):
        file = memory_file()
        write_header(file.descriptor, {}, len(part.source))
        stores[split] = ImageFile(file, channels=channels, capacity=capacity, verify=False)
    return stores


def _open_on_disk(
    folder: CacheFolder, parts: Mapping[str, Part], prints: Mapping[str, Fingerprint], channels: int, limit: int | None
) -> dict[str, ImageFile]:
    wanted = {prints[split].key: part.num_bytes for split, part in parts.items()}
    subjects = {fingerprint.subject for fingerprint in prints.values()}
    stores = {}
    with folder.alone():
        room = folder.make_room(wanted, subjects, limit)
        capacities = share(room, [part.num_bytes for part in parts.values()])
        for (split, part), capacity in zip(parts.items(), capacities, strict=True):
            promised = min(part.num_bytes, capacity)
            file, use = folder.open(
                prints[split].key, _describe(split, part, prints[split]), len(part.source), promised
            )
            reserve = disk_reserve(folder.path)
            stores[split] = ImageFile(
                file, channels=channels, capacity=capacity, verify=True, min_free_bytes=reserve, use=use
            )
    return stores


def _describe(split: str, part: Part, fingerprint: Fingerprint) -> dict[str, Any]:
    """What the header of a cache says."""
    return {
        "subject": fingerprint.subject,
        "root": os.path.realpath(part.source.root),
        "split": split,
        "form": describe_form(part.form),
        "pixels": describe_pixels(part.source),
    }
