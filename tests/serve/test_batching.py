"""Batches of items that come together: none is lost, none waits for ever, and a failed batch harms no other."""

import asyncio
import threading

import pytest

from cvtrain.serve.batching import Batcher


def run_with(batcher, scenario):
    async def main():
        task = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(scenario(), 20)
        finally:
            task.cancel()

    return asyncio.run(main())


def test_items_that_come_together_are_computed_together():
    batches = []
    batcher = Batcher(
        lambda items: batches.append(list(items)) or [-item for item in items], max_items=4, wait_seconds=0.2
    )

    async def scenario():
        return await asyncio.gather(*(batcher.submit(number) for number in range(10)))

    assert run_with(batcher, scenario) == [-number for number in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_comes_during_a_batch_is_the_next_one():
    batches, go_on = [], threading.Event()

    def compute(items):
        batches.append(list(items))
        go_on.wait(10)
        return items

    async def scenario():
        first = asyncio.create_task(batcher.submit("first"))
        while not batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others)

    batcher = Batcher(compute, max_items=8, wait_seconds=0.0)
    assert run_with(batcher, scenario) == ["first", 0, 1, 2]
    assert batches == [["first"], [0, 1, 2]]


def test_a_failed_batch_harms_no_other(caplog):
    def compute(items):
        if "bad" in items:
            raise RuntimeError("out of memory")
        return items

    async def scenario():
        found = await asyncio.gather(batcher.submit("bad"), batcher.submit("beside"), return_exceptions=True)
        return [*found, await batcher.submit("good")]

    batcher = Batcher(compute, max_items=2, wait_seconds=0.2)
    *failed, good = run_with(batcher, scenario)
    assert [str(error) for error in failed] == ["out of memory"] * 2
    assert good == "good"
    assert "a batch of 2 images failed" in caplog.text


def test_who_has_gone_is_left_out():
    seen, go_on = [], threading.Event()

    def compute(items):
        seen.extend(items)
        go_on.wait(10)
        return items

    async def scenario():
        first = asyncio.create_task(batcher.submit("first"))
        while not seen:
            await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.submit("gone"))
        last = asyncio.create_task(batcher.submit("last"))
        await asyncio.sleep(0)
        gone.cancel()
        go_on.set()
        return await first, await last

    batcher = Batcher(compute, max_items=8, wait_seconds=0.0)
    assert run_with(batcher, scenario) == ("first", "last")
    assert seen == ["first", "last"]


@pytest.mark.parametrize("max_items", [1, 3])
def test_no_batch_is_larger_than_allowed(max_items):
    sizes = []
    batcher = Batcher(lambda items: sizes.append(len(items)) or items, max_items=max_items, wait_seconds=0.05)

    async def scenario():
        return await asyncio.gather(*(batcher.submit(number) for number in range(20)))

    assert run_with(batcher, scenario) == list(range(20))
    assert max(sizes) == max_items
