"""What each rank of a test does with weights spread over the ranks: runs, and the same with all weights in each.

Started as `torchrun ... rank_sharding.py FOLDER NAME...`; `test_sharding.py` compares.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import cvtrain.training.placement  # noqa: E402
from cvtrain.commands.train import train  # noqa: E402
from cvtrain.config.errors import ConfigError  # noqa: E402
from cvtrain.distributed.env import rank_from_env  # noqa: E402
from cvtrain.distributed.fsdp import build_weights, num_own_bytes  # noqa: E402
from cvtrain.distributed.rendezvous import SharedSession  # noqa: E402
from cvtrain.training.build import build_run  # noqa: E402
from tests.support.rank_runs import RUNS, compose, poison, train_steps  # noqa: E402

FSDP = "trainer.parallel=fsdp"
SHARDED_RUNS = {
    # An uneven last batch of 10 images, clipping and an average; class weights and micro-batches.
    "plain": (*RUNS["plain"][1:], "data.batch_size=204", "data.balance=class_weights", "trainer.grad_accum_steps=3"),
    # A last training batch that leaves one image to the last rank, which batch norm cannot use. (AdamW would make steps
    # out of the rounding of gradients that are zero.)
    "normed": ("data.batch_size=205", "model.norm=batch", "optimizer=sgd", "trainer.eval_flip=true"),
    # A last val batch of one image; the backbone trains from the second epoch on; momentum, which comes with it.
    "frozen": ("data.batch_size=358", "model.freeze=backbone", "model.unfreeze_epoch=2", "optimizer=sgd"),
    "skipping": RUNS["skipping"],
}


def check_runs(world, folder: Path, names: list[str]) -> dict:
    found: dict = {}
    for name in names:
        overrides = SHARDED_RUNS[name]
        for kind, extra in (("data", ()), ("fsdp", (FSDP,))):
            run = build_run(compose(overrides, *extra), folder / f"{name}_{kind}", world=world)
            trainer = run.trainer
            if name == "skipping":
                poison(trainer, on=world.rank == world.world_size - 1)
            losses = train_steps(run)
            state = trainer.weights.state(trainer.average.model)
            if world.is_main_process:
                torch.save(dict(state), folder / f"{name}_{kind}.pt")
            slots = [value for entries in trainer.optimizer.state.values() for value in entries.values()]
            found[f"{name}_{kind}"] = {
                "losses": losses,
                "metrics": trainer.last_evaluation.metrics,
                "indices": trainer.last_evaluation.predictions.indices.tolist(),
                "skipped_steps": world.all_gather(trainer.num_skipped_steps),
                "parameter_bytes": world.all_gather(num_own_bytes(trainer.model.parameters())),
                "average_bytes": world.all_gather(num_own_bytes(trainer.average.model.parameters())),
                "slot_bytes": world.all_gather(num_own_bytes(s for s in slots if s.ndim)),
            }
            run.loaders.close()
            trainer.store.close()
            run.logger.finish(0)
    return found


def check_resuming(world, folder: Path, names: list[str]) -> list:
    """A run that stops after its fifth step goes on with spread weights: `cut` had them before, `moved` whole ones."""
    found = []
    for name in names:
        extra = (FSDP,) if name == "cut" else ()
        run = build_run(compose(SHARDED_RUNS["plain"], *extra), folder / name, world=world)
        stop_after(run.trainer, step=5)
        run.trainer.fit()
        run.trainer.store.close()
        run.loaders.close()
        run.logger.finish(0)
        world.barrier()
        config = compose(SHARDED_RUNS["plain"], FSDP, "resume=auto", "plots=false")
        done = train(config, run_dir=folder / name, world=world)
        found.append(world.all_gather([done.end_reason.value, done.monitor]))
    return found


def stop_after(trainer, *, step: int) -> None:
    """Send the run a signal at `step`, on its last rank."""
    train_step = trainer.train_step

    def watched(batch):
        train_step(batch)
        if trainer.step == step and trainer.world.rank == trainer.world.world_size - 1:
            trainer.stop_signals.received = signal.SIGTERM

    trainer.train_step = watched


def check_scaler(world) -> list:
    """An infinite gradient on one rank only keeps all from the update, and halves the scale of all."""
    weights = build_weights(world, torch.device("cpu"), sharded=True)
    number = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([number], lr=1.0)
    scaler = weights.build_scaler(torch.device("cpu"), enabled=True)
    scaler.scale(torch.zeros(()))
    number.grad = torch.full((1,), float("inf") if world.rank else 1.0)
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return world.all_gather([number.item(), scaler.get_scale() / before])


def check_refusal(world) -> str:
    module = torch.nn.Linear(2, 2)
    module.scale = torch.nn.Parameter(torch.ones(()))
    try:
        build_weights(world, torch.device("cpu"), sharded=True).spread(module, ())
    except ConfigError as error:
        return str(error)
    return ""


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    # So that the small network of these runs has several parts.
    cvtrain.training.placement.choose_units = functools.partial(
        cvtrain.training.placement.choose_units, smallest=64, largest=256
    )
    world = SharedSession(rank_from_env()).start({})
    found = {
        "runs": check_runs(world, folder, [name for name in names if name in SHARDED_RUNS]),
        "resumed": check_resuming(world, folder, [name for name in names if name not in SHARDED_RUNS]),
        "scaler": check_scaler(world),
        "refusal": check_refusal(world),
    }
    if world.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))
    world.barrier()
    sys.stdout.flush()
    os._exit(0)  # as in rank_checks.py


if __name__ == "__main__":
    main()
