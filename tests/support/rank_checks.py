"""What each rank of a test does: trains runs in one group of processes, and rank 0 writes down what all of them saw.

Started as `torchrun ... rank_checks.py FOLDER`; `test_distributed.py` compares with one process.
"""

import json
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from cvtrain.commands.train import train  # noqa: E402
from cvtrain.distributed.env import rank_from_env  # noqa: E402
from cvtrain.distributed.rendezvous import DistributedRendezvous  # noqa: E402
from cvtrain.training.build import build_run  # noqa: E402
from tests.support.rank_runs import RUNS, compose, fingerprint, leave_gaps, poison, train_steps  # noqa: E402


def check_runs(world, folder: Path) -> dict:
    """Whole runs: fingerprints of the weights of every rank, and rank 0's final figures."""
    found = {}
    for name, overrides in RUNS.items():
        run = build_run(compose(overrides), folder / name, world=world)
        if name == "gaps":
            leave_gaps(run.trainer)
        if name == "skipping":
            poison(run.trainer, on=world.rank == world.world_size - 1)
        losses = train_steps(run)
        prints = world.all_gather(fingerprint(run.trainer.model))
        evaluation = run.trainer.last_evaluation
        found[name] = {
            "prints": prints,
            "losses": losses,
            "metrics": evaluation.metrics,
            "num_images": evaluation.num_images,
            "indices": evaluation.predictions.indices.tolist(),
            "labels": evaluation.predictions.labels.tolist(),
            "skipped_steps": world.all_gather(run.trainer.state.num_skipped_steps),
            "steps": world.all_gather(run.trainer.step),
        }
        run.loaders.close()
        run.trainer.store.close()
        run.logger.finish(0)
    return found


def check_sums(world) -> dict:
    """Each of the ways in which ranks talk."""
    rank = world.rank
    tensor = torch.full((3,), float(rank))
    flag = torch.tensor(rank != 1)
    own = torch.tensor([rank, rank])
    world.broadcast_([own])
    order = []
    with world.local_main_first():
        order = world.rank
    return {
        "sum": world.all_gather(world.all_reduce_(tensor).tolist()),
        "all": world.all_gather([bool(world.all_true(flag)), bool(world.all_true(torch.tensor(True)))]),
        "numbers": world.all_gather(world.all_reduce_scalars([rank, 1])),
        "broadcast": world.all_gather(world.broadcast({"from": rank})),
        "copy": world.all_gather(own.tolist()),
        "gather": world.all_gather(len(world.gather(rank))),
        "order": order,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    session = DistributedRendezvous(rank_from_env())
    world = session.start({})
    found = {"sums": check_sums(world), "runs": check_runs(world, folder)}
    resumed = train(compose(RUNS["plain"], "trainer.epochs=3", "resume=auto"), run_dir=folder / "plain", world=world)
    found["resumed"] = world.all_gather([resumed.monitor, resumed.end_reason.value])
    if world.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))
    world.barrier()
    if world.world_size > 1:
        sys.stdout.flush()
        # As the command line does: gloo's threads may abort an interpreter that takes its time to end.
        os._exit(0)


if __name__ == "__main__":
    main()
