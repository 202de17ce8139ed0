"""`CacheMonitor`: log lines about a cache while it fills, and the loader that logs them."""

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

from cvtrain.data.cache.store import LIMIT_REACHED, ImageFile
from cvtrain.data.loader.batch import Batch
from cvtrain.data.loader.loader import BatchLoader

log = logging.getLogger(__name__)


class CacheMonitor:
    """Logs once each: that a cache is complete, that nothing more fits, that something in it was damaged.

    Workers fill the cache; the main process watches it, since they have no log of their own.

    Args:
        store: the cache.
        split: whose images they are.
        location: where it is, in words, such as "in RAM".
    """

    def __init__(self, store: ImageFile, *, split: str, location: str) -> None:
        self.store = store
        self.split = split
        self.location = location
        self._is_done = store.count() == store.num_images
        self._logged: set[str] = set()

    def check(self) -> None:
        """Warn of what has gone wrong since the last time; cheap enough for each batch."""
        if self.store.stopped and self._once("stopped"):
            log.warning("%s", self._why_stopped(self.store.stopped))
        if self.store.first_damaged is not None and self._once("damaged"):
            log.warning(
                "cache: %s has damaged images (the first is number %d of %s): they are decoded and stored again",
                self.location,
                self.store.first_damaged,
                self.split,
            )

    def after_epoch(self) -> None:
        """Log how much is stored: after the first epoch, and once all is."""
        if self._is_done:
            return
        stored, total = self.store.count(), self.store.num_images
        size = f"{self.store.num_bytes / 2**30:.2f} GiB {self.location}"
        if stored == total:
            self._is_done = True
            log.info("cache: %d %s images, %s, complete", stored, self.split, size)
        elif self._once("first epoch"):
            log.info("cache: %d of %d %s images, %s", stored, total, self.split, size)

    def _why_stopped(self, reason: int) -> str:
        stored, total = self.store.count(), self.store.num_images
        if reason == LIMIT_REACHED:
            room = f"{self.store.capacity / 2**20:.0f} MiB"
            cause = f"the {room} allowed are used (data.cache_limit_gib, by default half of what is free)"
        elif reason in (errno.ENOSPC, errno.EDQUOT):
            cause = "the disk is full, but for a reserve that the cache leaves free"
        else:
            cause = os.strerror(reason)
        stored_now = f"{stored} of {total} {self.split} images are {self.location}"
        return f"cache: {cause}: {stored_now}, the others are decoded each time"

    def _once(self, what: str) -> bool:
        is_new = what not in self._logged
        self._logged.add(what)
        return is_new


class CachedBatchLoader(BatchLoader):
    """A `BatchLoader` over a `CachedSource`, which logs the state of its cache. See `BatchLoader`."""

    def __init__(self, *, monitor: CacheMonitor, **settings: Any) -> None:
        super().__init__(**settings)
        self.monitor = monitor

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start_batch):
            self.monitor.check()
            yield batch
        self.monitor.after_epoch()
