"""What each process holds of a network, its gradients and AdamW's state: trainer.parallel=data and fsdp, counted.

    python scripts/bench/sharding.py
    python scripts/bench/sharding.py --model vit_b_16 --image-size 224 --ranks 2 4

After one step over gloo on the CPU, the bytes of all tensors that stay until the next one are added up, in each
process. Ends with `ratio: X.XX`, the largest share of a process times the number of processes, with the most of them:
1 is an even split. Exit code 1: the parts do not add up to the whole.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from processes import describe_machine, run_ranks


def count_as_rank(settings: list[str]) -> None:
    """One step in this process, which may be one of several; rank 0 prints what each holds, as JSON."""
    import torch
    from in_process import compose

    from cvtrain.distributed.env import rank_from_env
    from cvtrain.distributed.fsdp import num_own_bytes
    from cvtrain.distributed.rendezvous import Rendezvous, SharedSession
    from cvtrain.training.build import build_run

    torch.set_num_threads(1)
    rank = rank_from_env()
    world = (Rendezvous() if rank is None else SharedSession(rank)).start({})
    run = build_run(
        compose(*settings), Path(world.broadcast(tempfile.mkdtemp(prefix="cvtrain_sharding_"))), world=world
    )
    trainer = run.trainer
    batch = next(iter(trainer.train_loader.epoch(0)))
    trainer.share.count(batch)
    trainer.train_step(batch)
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    # Without AdamW's counts of steps, 4 bytes for each tensor.
    slots = [value for entries in trainer.optimizer.state.values() for value in entries.values() if value.ndim]
    held = [num_own_bytes(tensors) for tensors in (parameters, [p.grad for p in parameters], slots)]
    everyone = world.gather(held)
    run.loaders.close()
    run.logger.finish(0)
    if world.is_main_process:
        print(json.dumps(everyone))
    world.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that takes its time to end


def measure(ranks: int, settings: list[str]) -> list[list[int]]:
    """Bytes of parameters, gradients and optimizer state of each of `ranks` fresh processes."""
    return run_ranks(ranks, [__file__, "--count", *settings])


def main() -> int:
    if sys.argv[1:2] == ["--count"]:
        count_as_rank(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16", help="an option of conf/model")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(describe_machine())
    settings = [
        f"model={options.model}",
        "model.pretrained=false",
        "data.channels=3",
        f"data.image_size={options.image_size}",
        "data.batch_size=8",
        "optimizer=adamw",
        "augment=none",
        "trainer.device=cpu",
        "trainer.precision=fp32",
        "trainer.progress=false",
    ]
    print(f"{options.model} at {options.image_size} px, AdamW, float32; MB in the process that holds most", flush=True)
    print(f"{'':14} {'parameters':>11} {'gradients':>11} {'optimizer':>11} {'together':>11}   all processes")
    whole, ratio, is_exact = 0, 1.0, True
    for ranks in sorted(options.ranks):
        for parallel in ("data",) if ranks == 1 else ("data", "fsdp"):
            held = measure(ranks, [*settings, f"trainer.parallel={parallel}"])
            largest = max(held, key=sum)
            whole = whole or sum(largest)
            if parallel == "fsdp":
                ratio = sum(largest) / whole * ranks
                is_exact &= sum(map(sum, held)) == whole
            figures = "".join(f"{size / 1e6:12,.1f}" for size in (*largest, sum(largest)))
            print(f"{ranks} x {parallel:10}{figures}   {sum(map(sum, held)) / 1e6:,.1f}", flush=True)
    print(f"ratio: {ratio:.2f}")
    return 0 if is_exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
