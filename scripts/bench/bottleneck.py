"""What a run says would make it faster, beside the run that is made so: the estimate of the bottleneck report.

    python scripts/bench/bottleneck.py --data hymenoptera_data --pairs 3

Each round trains a small network on the photos with data.cache=none, reads the estimate for a cache from summary.json,
and trains with data.cache=ram for one epoch more, since the first fills it. Compared are the seconds of an epoch, which
are those of the training loop without evaluation. The last line is the estimate by what was measured: 1 is right.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import describe_machine, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("hymenoptera_data"), help="folder with train/ and val/")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="mobilenet_v3_small", help="cvtrain's name; a small one waits for its data")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.data / "train").is_dir():
        sys.exit(f"{arguments.data}: no folder with train/ and val/; --data names it")
    print(describe_machine())
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(arguments.pairs):
            plain = train(arguments, Path(name), f"none_{number}", "none", arguments.epochs)
            cached = train(arguments, Path(name), f"ram_{number}", "ram", arguments.epochs)
            estimate = plain["time"]["estimated_speedup"] or 1.0
            measured = plain["last_epoch_seconds"] / cached["last_epoch_seconds"]
            ratios.append(estimate / measured)
            print(f"  {plain['time']['bottleneck']}\n  estimated {estimate:.2f}, measured {measured:.2f}", flush=True)
    print(f"ratio: {statistics.median(ratios):.2f}")


def train(arguments: argparse.Namespace, folder: Path, name: str, cache: str, epochs: int) -> dict[str, Any]:
    """The run's summary, with `last_epoch_seconds`: of the steps of the last epoch, by their logged rates."""
    run_dir = folder / name
    overrides = [
        "data=custom",
        f"data.root={arguments.data.absolute()}",
        f"data.cache={cache}",
        f"data.image_size={arguments.image_size}",
        f"data.num_workers={arguments.workers}",
        f"model={arguments.model}",
        "model.pretrained=false",
        "augment.preview=false",
        "trainer.log_every_steps=1",
        f"trainer.epochs={epochs}",
        f"trainer.eval_every_epochs={epochs}",
        f"hydra.run.dir={run_dir}",
    ]
    run(["-m", "cvtrain", *overrides], folder=folder)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "perf/images_per_second" in row and row["epoch"] > 1]
    # All batches but the last of an epoch are of one size: what counts is the mean of seconds per image.
    per_image = statistics.fmean(1 / row["perf/images_per_second"] for row in steps)
    return summary | {"last_epoch_seconds": per_image * summary["images"]["train"]}


if __name__ == "__main__":
    main()
