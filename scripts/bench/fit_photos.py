"""ResNet-18 from scratch on a folder of photos, 2 epochs with evaluation: whole processes, cvtrain beside its peers.

    python scripts/bench/fit_photos.py --data hymenoptera_data --pairs 5

All read 224-pixel random crops and flips, batches of 32, and train with SGD at 0.001 and momentum 0.9, each round with
another seed. The peers have two workers, cvtrain has data.num_workers=auto, its default (`--our-workers 2`: as many). A
first round runs all peers (peers/*.py: PyTorch's tutorial, Lightning, timm) in fp32, as their documentation does; then
the fastest of them runs in turn with cvtrain:

- warm: the decoded images are in the cache on disk, as for every run but the first; precision as trainer.precision=auto
- cold: the cache is empty, and is filled by the run
- fp32: warm, trainer.precision=fp32
- cold fp32: the first run where the hardware has no bf16

At the end the training step alone, beside a bare loop over one held batch (`--no-step` leaves it out). Bars, where the
processor has native bf16: warm 2.5 times the fastest peer, cold 1.8, fp32 1.3, cold fp32 1.0; step 0.95. The last line
is the ratio of the warm runs.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from processes import describe_machine, in_turn, run, spread

PEERS = {"tutorial": "tutorial.py", "lightning": "lightning_module.py", "timm": "timm_loop.py"}
OURS = {"warm": "auto", "cold": "auto", "fp32": "fp32", "cold fp32": "fp32"}
BARS = {"warm": 2.5, "cold": 1.8, "fp32": 1.3, "cold fp32": 1.0}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("hymenoptera_data"), help="folder with train/ and val/")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of cvtrain and the fastest peer")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="peers of the first round")
    parser.add_argument("--ours", nargs="*", choices=OURS, default=["warm", "cold", "fp32"], help="kinds of our runs")
    parser.add_argument("--peer-bf16", action="store_true", help="also the fastest peer in bf16, for information")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="of the peers")
    parser.add_argument("--our-workers", default="auto", help="data.num_workers of cvtrain")
    parser.add_argument("--no-step", action="store_true", help="leave out the comparison of the step alone")
    parser.add_argument("--only-step", action="store_true", help="nothing but the comparison of the step alone")
    return parser.parse_args()


class Bench:
    """The programs, and what they took."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.seconds: dict[str, list[float]] = {}
        self.accuracies: dict[str, list[float]] = {}

    def run_peer(self, name: str, seed: int, precision: str = "fp32") -> None:
        a = self.arguments
        script = Path(__file__).parent / "peers" / PEERS[name]
        options = [f"--epochs={a.epochs}", f"--batch-size={a.batch_size}", f"--image-size={a.image_size}"]
        options += [f"--workers={a.workers}", f"--seed={seed}", f"--precision={precision}"]
        done = run([str(script), str(a.data.absolute()), *options], folder=self.folder)
        line = next(line for line in done.output.splitlines() if line.startswith("best val accuracy"))
        self._note(name if precision == "fp32" else f"{name} {precision}", done.seconds, float(line.split()[-1]))

    def run_ours(self, kind: str, seed: int) -> None:
        cache = self.folder / "cache"
        if kind.startswith("cold"):
            shutil.rmtree(cache, ignore_errors=True)
        run_dir = self.folder / "runs" / f"{kind.replace(' ', '_')}_{seed}"
        done = run(["-m", "cvtrain", *self.overrides(cache, OURS[kind], seed, run_dir)], folder=self.folder)
        summary = json.loads((run_dir / "summary.json").read_text())
        self._note(f"cvtrain {kind}", done.seconds, summary["best"]["metrics"]["val/accuracy"])
        shutil.rmtree(run_dir)

    def overrides(self, cache: Path, precision: str, seed: int, run_dir: Path) -> list[str]:
        a = self.arguments
        return [
            "data=custom",
            f"data.root={a.data.absolute()}",
            f"data.batch_size={a.batch_size}",
            f"data.image_size={a.image_size}",
            f"data.num_workers={a.our_workers}",
            "data.cache=disk",
            f"data.cache_dir={cache}",
            "augment.transforms=[RandomResizedCrop,RandomHorizontalFlip]",
            "model=resnet18",
            "model.pretrained=false",
            "optimizer=sgd",
            "optimizer.lr=0.001",
            "optimizer.momentum=0.9",
            "optimizer.weight_decay=0",
            "scheduler=constant",
            f"trainer.epochs={a.epochs}",
            f"trainer.precision={precision}",
            f"seed={seed}",
            f"hydra.run.dir={run_dir}",
        ]

    def _note(self, name: str, seconds: float, accuracy: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)
        self.accuracies.setdefault(name, []).append(accuracy)
        print(f"  {name}: {seconds:.1f} s, val accuracy {accuracy:.4f}", flush=True)

    def report(self, peer: str) -> float:
        """Print all; gives the ratio of the warm runs, or of the first kind if they were left out."""
        print("medians")
        for name, seconds in self.seconds.items():
            accuracies = self.accuracies[name]
            shown = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
            print(f"  {name:18} {spread(seconds)}; val accuracy {statistics.mean(accuracies):.3f} of {shown}")
        ratios = {}
        peers = self.seconds[peer][-self.arguments.pairs :]
        for kind in self.arguments.ours:
            ours = self.seconds[f"cvtrain {kind}"][-self.arguments.pairs :]
            ratios[kind] = statistics.median(theirs / mine for theirs, mine in zip(peers, ours, strict=True))
            print(f"{peer} by cvtrain {kind}: {ratios[kind]:.2f}, bar {BARS[kind]}")
        return ratios.get("warm", next(iter(ratios.values()), 0.0))


def compare_steps(arguments: argparse.Namespace, folder: Path, *, rounds: int = 7) -> float:
    """cvtrain's step beside a bare one, on a held batch in the precision of trainer.precision=auto: bare by ours."""
    import torch
    from torch import nn
    from torchvision import models

    from cvtrain.config.composer import Composer
    from cvtrain.config.load import typed_config
    from cvtrain.config.resolvers import register_resolvers
    from cvtrain.config.schema.root import register_schemas
    from cvtrain.runtime.memory import keep_freed_memory
    from cvtrain.runtime.precision import autocast
    from cvtrain.training.build import build_run

    register_schemas()
    composer = Composer("train")
    register_resolvers(composer)
    overrides = Bench(arguments, folder).overrides(folder / "cache", "auto", 0, folder / "step")
    overrides.append("data.num_workers=0")
    (folder / "step").mkdir()
    run_of_ours = build_run(typed_config(composer.compose(overrides), composer, overrides), folder / "step")
    trainer = run_of_ours.trainer
    keep_freed_memory(trainer.device)
    batch = next(iter(trainer.train_loader.epoch(0)))

    model = models.resnet18(weights=None, num_classes=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    images = torch.randn(batch.images.shape).to(memory_format=torch.channels_last)
    labels = batch.labels

    def bare() -> None:
        optimizer.zero_grad()
        with autocast(trainer.device, trainer.dtype):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    def seconds_of(step: Callable[[], None]) -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    trainer.model.train()
    pairs = [(seconds_of(lambda: trainer.train_step(batch)), seconds_of(bare)) for _ in range(rounds + 2)][2:]
    ours, theirs = zip(*pairs, strict=True)
    print(f"step of cvtrain {spread(ours)}; bare step {spread(theirs)}, {trainer.dtype}")
    return statistics.median(bare_seconds / mine for mine, bare_seconds in pairs)


def main() -> None:
    arguments = parse()
    if not (arguments.data / "train").is_dir():
        sys.exit(f"{arguments.data}: no folder with train/ and val/; --data names it")
    print(describe_machine(), flush=True)
    ratio = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(arguments, folder)
        if not arguments.only_step:
            ratio = alternate(bench)
        if not arguments.no_step or arguments.only_step:
            step = compare_steps(arguments, folder)
            print(f"bare step by the step of cvtrain: {step:.2f}, bar 0.95")
            ratio = ratio or step
    print(f"ratio: {ratio:.2f}")


def alternate(bench: Bench) -> float:
    """The first round of all, then rounds of ours and the fastest peer; gives the ratio of the warm runs."""
    arguments = bench.arguments
    print("first round: byte code, files and cache are read for the first time")
    for peer in arguments.peers:
        bench.run_peer(peer, seed=0)
    if "warm" in arguments.ours or "fp32" in arguments.ours:
        bench.run_ours("cold", seed=0)
    fastest = min(arguments.peers, key=lambda peer: bench.seconds[peer][0])
    for number in range(arguments.pairs):
        print(f"round {number + 1} of {arguments.pairs}")
        for program in in_turn([fastest, *arguments.ours], number):
            if program == fastest:
                bench.run_peer(fastest, seed=number)
            else:
                bench.run_ours(program, seed=number)
        if arguments.peer_bf16:
            bench.run_peer(fastest, seed=number, precision="bf16")
    return bench.report(fastest)


if __name__ == "__main__":
    main()
