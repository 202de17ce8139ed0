"""The order of samples at 100 million samples and 1,024 ranks, simulated: each sample once, and what a rank pays.

    python scripts/bench/sampler.py
    python scripts/bench/sampler.py --samples 10000000 --ranks 64

One rank in a process of its own goes through its whole epoch: seconds until its first batch, seconds for all of them,
and the memory that both take. Then all ranks, one after another, say which samples they would train on. Ends with
`ratio: X.XX`, the slowest of 8 ranks' epoch starts over the bar of one second. Exit code 1: a sample came twice or
never, or a bar was missed.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

import numpy as np

from cvtrain.data.loader.sampler import EpochSampler

BAR_SECONDS, BAR_GB = 1.0, 1.0
EPOCH = 7


def make_plan(samples: int, ranks: int, rank: int, share: int) -> EpochSampler:
    return EpochSampler(samples, share * ranks, 0, True, rank=rank, world_size=ranks)


def measure_rank(samples: int, ranks: int, rank: int, share: int) -> tuple[float, float, float]:
    """Seconds to the first batch, seconds for the whole epoch of this rank, and the process's peak memory in GB."""
    started = time.perf_counter()
    batches = make_plan(samples, ranks, rank, share).batches(EPOCH)
    next(batches)
    first = time.perf_counter() - started
    for _ in batches:
        pass
    seconds = time.perf_counter() - started
    return first, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count_all(samples: int, ranks: int, share: int) -> np.ndarray:
    """How often each sample comes, over all ranks: (samples,) uint8."""
    counts = np.zeros(samples, np.uint8)
    for rank in range(ranks):
        for key in make_plan(samples, ranks, rank, share).batches(EPOCH):
            counts[key.indices] += 1  # a sample that came twice within a batch would leave another with none
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--share", type=int, default=256, help="images of a rank per step")
    options = parser.parse_args()
    from processes import describe_machine  # loads torch, which the ranks need not

    print(describe_machine())
    print(f"{options.samples:,} samples, {options.ranks:,} ranks, {options.share} images of each per step", flush=True)

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        chosen = np.linspace(0, options.ranks - 1, min(8, options.ranks)).astype(int)
        arguments = [(options.samples, options.ranks, int(rank), options.share) for rank in chosen]
        measured = pool.starmap(measure_rank, arguments, chunksize=1)
    firsts, seconds, memory = (list(column) for column in zip(*measured, strict=True))
    print(f"one rank of {len(chosen)} tried, median (worst)")
    print(f"  to its first batch   {statistics.median(firsts) * 1e3:8.1f} ms ({max(firsts) * 1e3:.1f})")
    print(f"  its whole epoch      {statistics.median(seconds) * 1e3:8.1f} ms ({max(seconds) * 1e3:.1f})")
    print(f"  memory, all of it    {statistics.median(memory):8.4f} GB ({max(memory):.4f})")

    started = time.perf_counter()
    counts = count_all(options.samples, options.ranks, options.share)
    never, twice = int((counts == 0).sum()), int((counts > 1).sum())
    print(f"all ranks in {time.perf_counter() - started:.0f} s: {never} samples never, {twice} more than once")
    is_within = max(seconds) < BAR_SECONDS and max(memory) < BAR_GB and never == twice == 0
    print(f"bars: {BAR_SECONDS:g} s and {BAR_GB:g} GB per rank and epoch start: {'kept' if is_within else 'MISSED'}")
    print(f"ratio: {max(firsts) / BAR_SECONDS:.2f}")
    return 0 if is_within else 1


if __name__ == "__main__":
    raise SystemExit(main())
