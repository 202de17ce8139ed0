"""What a run says would make it faster, beside the run that is made so: the estimate of the bottleneck report.

    python scripts/bench/bottleneck.py --data hymenoptera_data --pairs 5
    python scripts/bench/bottleneck.py --data hymenoptera_data --settings "two workers, 224"

Each round trains on the photos in each of the settings with data.cache=none, reads the estimate for a cache from
summary.json, and trains with data.cache=ram. Compared are the seconds of the epochs after the first, in which the cache
fills; evaluation is cut to one batch, since a cache serves it too, which the estimate does not count. A setting's ratio
is the median estimate by the median of what was measured: 1 is right. The last line is the one that is farthest from 1.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import describe_machine, run

# Networks that wait for their data and such that do not; workers that share the cores, and none.
SETTINGS = {
    "two workers, 64": ("model=mobilenet_v3_small", "data.image_size=64", "data.num_workers=2"),
    "two workers, 224": ("model=mobilenet_v3_small", "data.image_size=224", "data.num_workers=2"),
    "one worker, 64": ("model=mobilenet_v3_small", "data.image_size=64", "data.num_workers=1"),
    "no worker, 64": ("model=mobilenet_v3_small", "data.image_size=64", "data.num_workers=0"),
    "resnet18, two workers, 96": ("model=resnet18", "data.image_size=96", "data.num_workers=2"),
    "frozen, two workers, 128": (
        "model=resnet18",
        "model.freeze=backbone",
        "data.image_size=128",
        "data.num_workers=2",
    ),
}
DEFAULT = ["two workers, 64", "two workers, 224", "no worker, 64", "frozen, two workers, 128"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("hymenoptera_data"), help="folder with train/ and val/")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--settings", nargs="+", default=DEFAULT, choices=SETTINGS, metavar="NAME", help=f"of {', '.join(SETTINGS)}"
    )
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.data / "train").is_dir():
        sys.exit(f"{arguments.data}: no folder with train/ and val/; --data names it")
    print(describe_machine())
    estimates: dict[str, list[float]] = {name: [] for name in arguments.settings}
    measured: dict[str, list[float]] = {name: [] for name in arguments.settings}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(arguments.pairs):
            for name in arguments.settings:
                plain = train(arguments, Path(folder), f"{pair}_none", "none", SETTINGS[name])
                cached = train(arguments, Path(folder), f"{pair}_ram", "ram", SETTINGS[name])
                # The sentence may be about another setting, such as more workers, or about none if it gains little.
                (estimate,) = (line for line in plain["estimates"] if line.startswith("data.cache="))
                estimates[name].append(float(estimate.partition(": ")[2]))
                measured[name].append(plain["epoch_seconds"] / cached["epoch_seconds"])
                found = f"estimated {estimates[name][-1]:.2f}, measured {measured[name][-1]:.2f}"
                print(f"  {name}: {found}: {plain['bottleneck']}", flush=True)
    ratios = {}
    for name in arguments.settings:
        ratios[name] = statistics.median(estimates[name]) / statistics.median(measured[name])
        print(f"{name:26} estimated {spread(estimates[name])}, measured {spread(measured[name])}: {ratios[name]:.2f}")
    print(f"ratio: {max(ratios.values(), key=lambda ratio: max(ratio, 1 / ratio)):.2f}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def train(
    arguments: argparse.Namespace, folder: Path, name: str, cache: str, settings: tuple[str, ...]
) -> dict[str, Any]:
    """`time` of the run's summary, with `epoch_seconds`: of the steps of an epoch after the first, by logged rates."""
    run_dir = folder / name
    overrides = [
        "data=custom",
        f"data.root={arguments.data.absolute()}",
        f"data.cache={cache}",
        "model.pretrained=false",
        "augment.preview=false",
        "plots=false",
        "trainer.log_every_steps=1",
        f"trainer.epochs={arguments.epochs}",
        f"trainer.eval_every_epochs={arguments.epochs}",
        "trainer.limit_val_batches=1",
        *settings,
        f"hydra.run.dir={run_dir}",
    ]
    run(["-m", "cvtrain", *overrides], folder=folder)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "perf/images_per_second" in row and row["epoch"] > 1]
    # All batches but the last of an epoch are of one size: what counts is the mean of seconds per image.
    per_image = statistics.fmean(1 / row["perf/images_per_second"] for row in steps)
    shutil.rmtree(run_dir)
    return summary["time"] | {"epoch_seconds": per_image * summary["images"]["train"]}


if __name__ == "__main__":
    main()
