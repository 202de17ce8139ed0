"""One cache for all processes of a run on a machine: the first of them opens it, and the others take it from there."""

import fcntl
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cvtrain.data.cache.source import ImageStore, NullStore
from cvtrain.data.cache.store import ImageFile, SharedFile
from cvtrain.distributed.process_group import ProcessGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """Where another process of the same machine and user finds an open cache.

    Attributes:
        process: that has it open.
        descriptor, use: of its file, and of the file that keeps it from being removed, if there is one.
        channels, capacity, verify, min_free_bytes: as in `ImageFile`.
    """

    process: int
    descriptor: int
    use: int | None
    channels: int
    capacity: int
    verify: bool
    min_free_bytes: int


def offer_stores(
    stores: Mapping[str, ImageStore] | None, place: str, world: ProcessGroup
) -> tuple[dict[str, Offer | None], str]:
    """What the first process of this machine has opened, by split, and where it is, in words.

    Args:
        stores: what this process has opened; None if it is not the first of its machine.
    """
    own = None if stores is None else ({split: _offer(store) for split, store in stores.items()}, place)
    offered = {node: offers for node, offers in world.all_gather((world.node, own)) if offers is not None}
    return offered[world.node]


def take_stores(offers: Mapping[str, Offer | None]) -> dict[str, ImageStore]:
    """The caches that were offered, opened for this process too; what cannot be opened is decoded each time."""
    stores: dict[str, ImageStore] = {}
    for split, offer in offers.items():
        try:
            stores[split] = NullStore() if offer is None else _take(offer)
        except OSError as error:
            log.warning("cache: the one of another process of this run cannot be used, images are decoded: %s", error)
            stores[split] = NullStore()
    return stores


def _offer(store: ImageStore) -> Offer | None:
    if not isinstance(store, ImageFile):
        return None
    return Offer(
        process=os.getpid(),
        descriptor=store.file.descriptor,
        use=None if store.use is None else store.use.descriptor,
        channels=store.channels,
        capacity=store.capacity,
        verify=store.verify,
        min_free_bytes=store.min_free_bytes,
    )


def _take(offer: Offer) -> ImageFile:
    use = None
    if offer.use is not None:
        use = _open(offer.process, offer.use)
        fcntl.flock(use.descriptor, fcntl.LOCK_SH)
    return ImageFile(
        _open(offer.process, offer.descriptor),
        channels=offer.channels,
        capacity=offer.capacity,
        verify=offer.verify,
        min_free_bytes=offer.min_free_bytes,
        use=use,
    )


def _open(process: int, descriptor: int) -> SharedFile:
    """A file that another process has open, with or without a name. Linux lets processes of one user do so."""
    return SharedFile(os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC))
