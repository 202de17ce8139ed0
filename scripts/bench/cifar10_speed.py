"""Accuracy and training seconds of experiment=cifar10_speed over several seeds.

    python scripts/bench/cifar10_speed.py --seeds 10                       torchvision's set, below ./datasets
    python scripts/bench/cifar10_speed.py --seeds 3 --root cifar10         class folders, cifar10/train and cifar10/test
    python scripts/bench/cifar10_speed.py trainer.compile=true             any setting of cvtrain besides

Counted is `Trainer.fit`: all steps, the evaluation, and writing the checkpoints. Reading the set and bringing it to the
device is not, nor is the first run, of one epoch, in which a GPU chooses its kernels. The test split is scored with the
run's own weights, once. The last line is 10 s, the bar on one H100, by the median of the seconds.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from in_process import compose, synchronize
from processes import describe_machine

from cvtrain.config.schema.root import Config
from cvtrain.report.run_report import score_with_best_weights
from cvtrain.runtime.precision import backend_flags
from cvtrain.training.build import build_run

BAR_SECONDS, BAR_ACCURACY = 10.0, 0.94


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs that count")
    parser.add_argument("--root", help="class folders instead of torchvision's file")
    parser.add_argument("settings", nargs="*", help="settings of cvtrain, such as trainer.epochs=10")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    settings = ["experiment=cifar10_speed", "trainer.progress=false", "data.device_cache=always"]
    if arguments.root:
        settings += ["data=custom", f"data.root={Path(arguments.root).resolve()}"]
    settings += arguments.settings
    print(describe_machine())
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(-1, arguments.seeds):
            warm_up = ["trainer.max_steps=20", "scheduler.warmup_epochs=0"] if run < 0 else []
            result = train_once(compose(*settings, f"seed={max(run, 0)}", *warm_up), Path(folder) / f"run{run}")
            if run < 0:
                continue
            accuracies.append(result[0])
            seconds.append(result[1])
            print(f"seed {run}: test accuracy {result[0]:.4f}, {result[1]:.2f} s", flush=True)
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    mean = statistics.mean(accuracies)
    print(f"test accuracy {mean:.4f} +- {deviation:.4f} ({len(accuracies)} seeds), bar {BAR_ACCURACY}")
    print(f"seconds       median {statistics.median(seconds):.2f}, {min(seconds):.2f} to {max(seconds):.2f}")
    print(f"ratio: {BAR_SECONDS / statistics.median(seconds):.2f}")


def train_once(config: Config, run_dir: Path) -> tuple[float, float]:
    """Test accuracy, and the seconds of training."""
    run_dir.mkdir(parents=True)
    run = build_run(config, run_dir)
    trainer = run.trainer
    try:
        for loader in (run.loaders.train, run.loaders.val):
            next(iter(loader.epoch(0)))  # brings the split to the device
        with backend_flags(trainer.device, trainer.dtype, deterministic=config.trainer.deterministic):
            synchronize(trainer.device)
            started = time.perf_counter()
            trainer.fit()
            synchronize(trainer.device)
            seconds = time.perf_counter() - started
            assert run.loaders.test is not None, "there is no test split"
            scored = score_with_best_weights(run, run.loaders.test)
    finally:
        run.loaders.close()
        trainer.store.close()
        run.logger.finish(0)
    del run, trainer
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return scored.metrics["accuracy"], seconds


if __name__ == "__main__":
    main()
