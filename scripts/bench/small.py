"""Images/s of a small network on a small set: cvtrain beside a bare loop on ready tensors, and PyTorch's quickstart.

    python scripts/bench/small.py --pairs 5

An MLP 784-512-512-10 with SGD on 60,000 grey images of 28x28 (noise, in MNIST's files), batches of 512, in one process,
epochs in turn. The bare loop has float images and labels in memory, normalised already, and indexes them by a
permutation. The quickstart's loop (https://docs.pytorch.org/tutorials/beginner/basics/quickstart_tutorial.html) has a
Dataset per image with ToTensor, a DataLoader without workers, and fp32. Bars: 0.95 of the bare loop in the same
precision, 3 times the quickstart. The last line is the first of these, in the precision that trainer.precision=auto
takes.
"""

import argparse
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from processes import describe_machine
from torch import nn

from cvtrain.config.composer import Composer
from cvtrain.config.load import check_command, typed_config
from cvtrain.config.resolvers import register_resolvers
from cvtrain.config.schema.root import register_schemas
from cvtrain.runtime.memory import keep_freed_memory
from cvtrain.runtime.precision import autocast
from cvtrain.training.build import build_run

BATCH_SIZE = 512
OVERRIDES = (
    "data=mnist",
    f"data.batch_size={BATCH_SIZE}",
    "data.val_fraction=0.01",
    "model.hidden=[512,512]",
    "model.dropout=0",
    "optimizer=sgd",
    "optimizer.lr=1e-3",
    "optimizer.momentum=0",
    "scheduler=constant",
    "augment.preview=false",
    "trainer.progress=false",
    "trainer.epochs=1000",
)


def write_idx(path: Path, values: np.ndarray) -> None:
    """The IDX format of MNIST: magic number, sizes as big-endian int32, bytes."""
    sizes = struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())


def write_set(root: Path, num_images: int) -> None:
    generator = np.random.default_rng(0)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", num_images), ("t10k", 1000)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", generator.integers(0, 10, count).astype(np.uint8))


def build_ours(root: Path, precision: str) -> Callable[[], int]:
    """One epoch of cvtrain's own loop, logging included; gives the number of images."""
    overrides = [*OVERRIDES, f"data.root={root}", f"trainer.precision={precision}"]
    register_schemas()
    composer = Composer("train")
    register_resolvers(composer)
    check_command(composer, overrides, multirun=False)
    run_dir = root / f"run_{precision}"
    run_dir.mkdir()
    run = build_run(typed_config(composer.compose(overrides), composer, overrides), run_dir)

    def epoch() -> int:
        run.trainer.train_epoch()
        run.trainer.state.epoch_end_due = False  # no evaluation, no checkpoint
        return run.trainer.train_loader.num_images

    return epoch


def build_mlp() -> nn.Sequential:
    layers = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def build_bare(precision: torch.dtype, num_images: int) -> Callable[[], int]:
    """The least that an epoch can be: ready tensors, a permutation, forward, backward, update."""
    device = torch.device("cpu")
    images, labels = torch.randn(num_images, 1, 28, 28), torch.randint(10, (num_images,))
    model = build_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)

    def epoch() -> int:
        model.train()
        for chosen in torch.randperm(num_images).split(BATCH_SIZE):
            with autocast(device, precision):
                logits = model(images[chosen])
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return num_images

    return epoch


def build_quickstart(root: Path) -> Callable[[], int]:
    """The training loop of the quickstart, word for word where it can be."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import ToTensor

    training_data = datasets.MNIST(root=root, train=True, download=False, transform=ToTensor())
    dataloader = DataLoader(training_data, batch_size=BATCH_SIZE)
    model, loss_fn = build_mlp(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def epoch() -> int:
        model.train()
        for batch, (images, labels) in enumerate(dataloader):
            loss = loss_fn(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if batch % 100 == 0:
                loss.item()
        return len(training_data)

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds of all")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per round of all but the quickstart, which has 1")
    parser.add_argument("--images", type=int, default=60_000)
    arguments = parser.parse_args()
    print(describe_machine())
    keep_freed_memory(torch.device("cpu"))  # as a run does; it holds for the peers in this process too
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_set(root, arguments.images)
        precisions = {"fp32": torch.float32, "auto": torch.bfloat16}
        if not torch.cpu._is_avx512_bf16_supported():
            precisions.pop("auto")
        programs: dict[str, Callable[[], int]] = {}
        for precision, dtype in precisions.items():
            programs[f"cvtrain {precision}"] = build_ours(root, precision)
            programs[f"bare loop {precision}"] = build_bare(dtype, round(0.99 * arguments.images))
        programs["quickstart"] = build_quickstart(root)
        rates = measure(programs, pairs=arguments.pairs, epochs=arguments.epochs)
    for program, found in rates.items():
        print(f"{program:15} {statistics.median(found):9,.0f} images/s ({min(found):,.0f} to {max(found):,.0f})")
    ratios = {}
    for precision in precisions:
        pairs = zip(rates[f"cvtrain {precision}"], rates[f"bare loop {precision}"], strict=True)
        ratios[precision] = statistics.median(ours / bare for ours, bare in pairs)
        print(f"cvtrain by the bare loop, {precision}: {ratios[precision]:.2f}")
        against = zip(rates[f"cvtrain {precision}"], rates["quickstart"], strict=True)
        print(f"cvtrain by the quickstart, {precision}: {statistics.median(a / b for a, b in against):.2f}")
    print(f"ratio: {list(ratios.values())[-1]:.2f}")


def measure(programs: dict[str, Callable[[], int]], *, pairs: int, epochs: int) -> dict[str, list[float]]:
    """Images/s of each program and round; the first epoch of each, which warms up, is left out."""
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for epoch in programs.values():
        epoch()
    for _ in range(pairs):
        for name, epoch in programs.items():
            began = time.perf_counter()
            num_images = sum(epoch() for _ in range(1 if name == "quickstart" else epochs))
            rates[name].append(num_images / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
