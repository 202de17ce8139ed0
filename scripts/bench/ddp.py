"""Two processes over gloo against one, on the same batches: the same final loss, and the same weights on both.

    python scripts/bench/ddp.py
    python scripts/bench/ddp.py --ranks 4 --pairs 3

Trains the MLP on digits in float32, without dropout, with uneven batches, once in one process and once under torchrun,
in turn. Each process has one thread. Ends with `ratio: X.XX`, images per second of the processes together over those of
one (more than 1: faster). Exit code 1: the losses differ by more than 1e-5 of them, or the weights of the ranks in a
bit.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from processes import describe_machine, run_ranks

BAR = 1e-5
SETTINGS = (
    "model.dropout=0",
    "augment.preview=false",
    "data.batch_size=250",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "trainer.progress=false",
    "trainer.eval_every_epochs=100",
)


def train_as_rank(epochs: int) -> None:
    """One run in this process, which may be one of several; rank 0 prints what it came to, as JSON."""
    import torch
    from in_process import compose

    from cvtrain.distributed.env import rank_from_env
    from cvtrain.distributed.rendezvous import DistributedRendezvous, Rendezvous
    from cvtrain.training.build import build_run

    torch.set_num_threads(1)
    rank = rank_from_env()
    world = (Rendezvous() if rank is None else DistributedRendezvous(rank)).start({})
    folder = world.broadcast(tempfile.mkdtemp(prefix="cvtrain_ddp_"))
    run = build_run(compose(*SETTINGS, f"trainer.epochs={epochs}"), Path(folder), world=world)
    started = time.perf_counter()
    run.trainer.fit()
    seconds = time.perf_counter() - started
    weights = b"".join(value.numpy().tobytes() for value in run.trainer.model.state_dict().values())
    hashes = world.all_gather(hashlib.sha256(weights).hexdigest())
    evaluation = run.trainer.last_evaluation
    assert evaluation is not None
    run.logger.finish(0)
    if world.is_main_process:
        result = {
            "loss": evaluation.metrics["loss"],
            "images": evaluation.num_images,
            "weights": hashes,
            "rate": run.loaders.train.num_images * epochs / seconds,
        }
        print(json.dumps(result))
    world.barrier()
    if world.world_size > 1:
        sys.stdout.flush()
        # As the command line does: gloo's threads may abort an interpreter that takes its time to end.
        os._exit(0)


def measure(ranks: int, epochs: int) -> dict:
    """What a run of `ranks` fresh processes came to."""
    return run_ranks(ranks, [__file__, "--train", "--epochs", str(epochs)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_as_rank(options.epochs)
        return 0
    print(describe_machine())
    print(
        f"MLP of 301,066 weights on digits, batches of 250, {options.epochs} epochs, one thread per process", flush=True
    )
    pairs = [(measure(1, options.epochs), measure(options.ranks, options.epochs)) for _ in range(options.pairs)]
    for name, column in (("1 process", 0), (f"{options.ranks} processes", 1)):
        rates = [pair[column]["rate"] for pair in pairs]
        print(
            f"{name:12} final val loss {pairs[0][column]['loss']:.9f}   "
            f"images/s median {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        )
    difference = max(abs(one["loss"] - several["loss"]) / one["loss"] for one, several in pairs)
    is_equal = all(len(set(several["weights"])) == 1 for _, several in pairs)
    print(f"relative difference of the final loss: {difference:.1e} (bar {BAR:g})")
    print(f"weights on all {options.ranks} ranks: {'equal to the bit' if is_equal else 'DIFFERENT'}")
    print(f"ratio: {statistics.median(several['rate'] / one['rate'] for one, several in pairs):.2f}")
    return 0 if difference <= BAR and is_equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
