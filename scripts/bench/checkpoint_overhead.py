"""What checkpoints cost a run: training time lost per save, and its share at the default of one save in 10 minutes.

    python scripts/bench/checkpoint_overhead.py resnet18 --batch-size 8 --pairs 7
    python scripts/bench/checkpoint_overhead.py resnet50 --device cuda --batch-size 64 --image-size 224

Trains a torchvision network with AdamW and an average of its weights, as a run does, on one batch of noise. Two spells
of the same number of steps are timed in turn: one without a save, one that begins with a save and ends when the file is
on disk and verified. The difference is what a save costs: the copy, and what its thread takes from training.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from cvtrain.checkpoint import CheckpointStore, inspect_checkpoint, load_checkpoint, snapshot
from cvtrain.optim.ema import ModelEma

DEFAULT_SECONDS = 600.0  # checkpoint.every_minutes=10
BAR = 0.02


class Training:
    """A network, its optimizer and its average, and one batch to train on."""

    def __init__(self, model: nn.Module, *, batch_size: int, image_size: int, device: torch.device) -> None:
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.average = ModelEma(self.model, 0.999)
        self.images = torch.randn(batch_size, 3, image_size, image_size, device=device)
        self.labels = torch.randint(1000, (batch_size,), device=device)
        self.device = device
        self.num_steps = 0

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
            self.optimizer.step()
            self.average.update(self.model)
        self.num_steps += num_steps
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": {"step": self.num_steps, "epoch": 0, "batch": self.num_steps},
            "config": {},
            "classes": ["noise"],
            "preprocessing": {},
        }


def seconds_of(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(training: Training, folder: Path, *, pairs: int) -> dict[str, float]:
    """Medians over the pairs, in seconds and bytes."""
    store = CheckpointStore(folder, keep_last=1)
    training.run(3)
    cpu_before = time.process_time()
    write_seconds = seconds_of(lambda: (store.save(training.state()), store.wait()))
    cpu_seconds = time.process_time() - cpu_before
    step_seconds = seconds_of(lambda: training.run(5)) / 5
    # long enough for the file to be written while training goes on, at half the speed on a busy machine
    num_steps = max(5, round(3 * write_seconds / step_seconds))

    def with_save() -> None:
        store.save(training.state())
        training.run(num_steps)
        store.wait()

    lost, plain = [], []
    for pair in range(pairs):
        # each of the two comes first in turn, so that a machine that gets slower favours none
        if pair % 2:
            saved, without = seconds_of(with_save), seconds_of(lambda: training.run(num_steps))
        else:
            without, saved = seconds_of(lambda: training.run(num_steps)), seconds_of(with_save)
        plain.append(without)
        lost.append(saved - without)
    path = folder / "last.pt"
    return {
        "file_bytes": path.stat().st_size,
        "step_seconds": statistics.median(plain) / num_steps,
        "copy_seconds": statistics.median(seconds_of(lambda: snapshot(training.state())) for _ in range(pairs)),
        "write_seconds": write_seconds,
        "cpu_seconds": cpu_seconds,
        "verify_seconds": statistics.median(seconds_of(lambda: inspect_checkpoint(path)) for _ in range(pairs)),
        "load_seconds": statistics.median(seconds_of(lambda: load_checkpoint(path)) for _ in range(pairs)),
        "lost_seconds": statistics.median(lost),
        "lost_low": min(lost),
        "lost_high": max(lost),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18"], help="names of torchvision's networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs of spells with and without a save")
    parser.add_argument("--folder", type=Path, help="where the files are written; default: a temporary folder")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"torch {torch.__version__}, {name}, batch {arguments.batch_size} of {arguments.image_size} pixels")
    for model_name in arguments.models:
        training = Training(
            torchvision.models.get_model(model_name),
            batch_size=arguments.batch_size,
            image_size=arguments.image_size,
            device=device,
        )
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            report(model_name, measure(training, Path(folder), pairs=arguments.pairs))


def report(model_name: str, times: dict[str, float]) -> None:
    mb = times["file_bytes"] / 1e6
    lost = times["lost_seconds"]

    def rate(name: str) -> str:
        return f"{times[name]:.3f} s ({mb / times[name]:.0f} MB/s)"

    print(
        f"{model_name}: {mb:.0f} MB, step {times['step_seconds'] * 1e3:.1f} ms\n"
        f"  training waits for the copy: {rate('copy_seconds')}\n"
        f"  copy, write and verify: {rate('write_seconds')}, of one core: {times['cpu_seconds']:.3f} s\n"
        f"  verify alone: {rate('verify_seconds')}; load: {rate('load_seconds')}\n"
        f"  a save costs {lost:.3f} s of training ({times['lost_low']:.3f} to {times['lost_high']:.3f}): "
        f"{lost / DEFAULT_SECONDS:.3%} of the time at one in 10 minutes, "
        f"{BAR:.0%} at one in {max(lost, 0) / BAR:.1f} s"
    )


if __name__ == "__main__":
    main()
