"""Images of requests that come together, computed together."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger(__name__)


class Batcher:
    """Gathers items that arrive within a few milliseconds, and hands them to a function in one thread.

    While a batch is computed, items wait and become the next one, so the batches grow with the load.

    Args:
        compute: from a list of items to as many results.
        max_items: most items of a batch.
        wait_seconds: for which the first item waits for others.
    """

    def __init__(self, compute: Callable[[list[Any]], Sequence[Any]], *, max_items: int, wait_seconds: float) -> None:
        self.compute = compute
        self.max_items = max_items
        self.wait_seconds = wait_seconds
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cvtrain-serve")

    async def submit(self, item: Any) -> Any:
        """Return the result for `item`; raises what `compute` raises."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((item, future))
        return await future

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                waiting = await self._gather()
                # Who has gone needs no answer.
                waiting = [(item, future) for item, future in waiting if not future.done()]
                if not waiting:
                    continue
                try:
                    results = await loop.run_in_executor(self._thread, self.compute, [item for item, _ in waiting])
                except Exception as error:  # the next batch may do better
                    log.exception("a batch of %d images failed", len(waiting))
                    for _, future in waiting:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(waiting, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """The next batch: all that waits, or the first item to come and those shortly after it."""
        found = [await self._queue.get()]
        self._take(found)
        end = asyncio.get_running_loop().time() + self.wait_seconds
        with contextlib.suppress(asyncio.TimeoutError):
            while len(found) < self.max_items and (left := end - asyncio.get_running_loop().time()) > 0:
                found.append(await asyncio.wait_for(self._queue.get(), left))
                self._take(found)
        return found

    def _take(self, found: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        while len(found) < self.max_items and not self._queue.empty():
            found.append(self._queue.get_nowait())
