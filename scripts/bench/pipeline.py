"""Photos to augmented training batches alone: cvtrain's loader beside ImageFolder, torchvision v2 and DataLoader.

    OMP_NUM_THREADS=1 python scripts/bench/pipeline.py hymenoptera_data/train

Both crop at random (scale 0.35 to 1) to 224 pixels and flip, in the same number of worker processes, in batches of 32.
cvtrain hands over uint8 batches and leaves the normalisation for the device; torchvision's recipe makes normalised
floats in the workers. A second ratio counts cvtrain's normalisation too, on the CPU in the main process. The peer is
the faster of two recipes, on Pillow images and on tensors; it decodes with Pillow, as ImageFolder does, and cvtrain
with its default, OpenCV. On a machine that others use too, the ratios by processor time are the steadier ones.

Warm: an epoch on a cache that is complete, workers running on both sides. Cold: the first epoch, from starting the
workers, with the cache (in memory) being built; the peer's first epoch, likewise. Epochs of the two alternate.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.augment import AugmentConfig
from cvtrain.config.schema.data import CustomConfig, DataCache, Reader
from cvtrain.data.augment import build_train_transform
from cvtrain.data.cache.build import build_loader, cache_splits
from cvtrain.data.images.resize import build_eval_transform
from cvtrain.data.loader.batch import BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.normalize import Normalizer
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import Splits

SIZE, BATCH_SIZE, SCALE = 224, 32, [0.35, 1.0]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPES = ("pillow", "tensor")
TRANSFORMS: list[Any] = [{"RandomResizedCrop": {"scale": SCALE}}, "RandomHorizontalFlip"]


@dataclass(frozen=True)
class Cost:
    """Of an epoch: seconds by the clock, and of processors, in this process and its workers."""

    seconds: float
    processor_seconds: float


def cost_of(batches: Iterator[Any], use: Callable[[Any], object]) -> Cost:
    before, started = processor_seconds(), time.perf_counter()
    for batch in batches:
        use(batch)
    return Cost(time.perf_counter() - started, processor_seconds() - before)


def processor_seconds() -> float:
    """Of this process and its children that live."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Ours:
    """cvtrain's training loader, as `data=custom` builds it."""

    def __init__(self, splits: Splits, config: CustomConfig, num_workers: int) -> None:
        fraction = config.crop_fraction or 0.875
        resize = build_eval_transform(image_size=SIZE, resize="resize_crop", crop_fraction=fraction)
        cached = cache_splits(config, splits, train_resize=resize, eval_resize=resize).train
        augment = AugmentConfig(name="crop and flip", transforms=TRANSFORMS)
        transform = build_train_transform(augment, image_size=SIZE, channels=3, eval_transform=resize)
        self.loader: BatchLoader = build_loader(
            dataset=BatchDataset(
                source=cached, eval_transform=resize, train_transform=transform, image_size=SIZE, channels=3, seed=0
            ),
            plan=EpochSampler(len(cached), BATCH_SIZE, 0, True),
            num_workers=num_workers,
        )
        self.normalizer = Normalizer(MEAN, STD, torch.channels_last)
        self.num_epochs = 0

    def epoch(self, *, normalized: bool = False) -> Cost:
        """The next epoch."""
        self.num_epochs += 1
        use = (lambda batch: self.normalizer(batch.images)) if normalized else (lambda batch: batch.images)
        return cost_of(self.loader.epoch(self.num_epochs), use)

    def close(self) -> None:
        self.loader.close()


class Peer:
    """ImageFolder and DataLoader with one of torchvision's documented recipes: `pillow` or `tensor`."""

    def __init__(self, folder: Path, recipe: str, num_workers: int) -> None:
        crop = [v2.RandomResizedCrop(SIZE, scale=tuple(SCALE), antialias=True), v2.RandomHorizontalFlip()]
        first = [*crop, v2.ToImage()] if recipe == "pillow" else [v2.ToImage(), *crop]
        transform = v2.Compose([*first, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
        options: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
        self.loader = DataLoader(ImageFolder(folder, transform), BATCH_SIZE, shuffle=True, **options)

    def epoch(self) -> Cost:
        return cost_of(iter(self.loader), lambda batch: batch[0])


def read_folder(folder: Path, reader: str) -> tuple[Splits, CustomConfig]:
    config = CustomConfig(name="custom", root=str(folder), reader=Reader(reader), cache=DataCache.ram)
    config.val_fraction = 1e-9  # one image of each class
    return build_splits(config), config


@dataclass(frozen=True)
class Rate:
    """Medians: images per second by the clock, and per second of one core."""

    images_per_second: float
    images_per_core_second: float


def report(name: str, costs: list[Cost], num_images: int) -> Rate:
    """Print and return what the epochs come to."""
    rates = [num_images / cost.seconds for cost in costs]
    rate = Rate(
        statistics.median(rates), statistics.median(num_images / max(1e-3, cost.processor_seconds) for cost in costs)
    )
    print(
        f"  {name:42} {rate.images_per_second:8,.0f} images/s ({min(rates):,.0f} to {max(rates):,.0f}, n={len(rates)})"
        f"{rate.images_per_core_second:8,.0f} per second of a core",
        flush=True,
    )
    return rate


def best_peer(costs: dict[str, list[Cost]], num_images: int) -> Rate:
    """The better of the two recipes, each by its own measure."""
    rates = [report(f"torchvision on {recipe}", costs[recipe], num_images) for recipe in RECIPES]
    return Rate(max(rate.images_per_second for rate in rates), max(rate.images_per_core_second for rate in rates))


def ratio(ours: Rate, peer: Rate) -> str:
    per_core = ours.images_per_core_second / peer.images_per_core_second
    return f"{ours.images_per_second / peer.images_per_second:.2f} (by processor time {per_core:.2f})"


def measure_cold(splits: Splits, config: CustomConfig, arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """First epochs, each in new workers and with a new cache."""
    costs: dict[str, list[Cost]] = {"ours": [], **{recipe: [] for recipe in RECIPES}}
    for _ in range(arguments.pairs):
        for recipe in RECIPES:
            costs[recipe].append(Peer(arguments.folder, recipe, arguments.workers).epoch())
            gc.collect()  # ends its workers
        ours = Ours(splits, config, arguments.workers)
        costs["ours"].append(ours.epoch())
        ours.close()
    return costs


def measure_warm(splits: Splits, config: CustomConfig, arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """Later epochs, in workers that run and on a cache that is complete."""
    costs: dict[str, list[Cost]] = {"ours": [], "normalized": [], **{recipe: [] for recipe in RECIPES}}
    ours = Ours(splits, config, arguments.workers)
    peers = {recipe: Peer(arguments.folder, recipe, arguments.workers) for recipe in RECIPES}
    for side in (ours, *peers.values()):
        side.epoch()

    def several(normalized: bool) -> Cost:
        epochs = [ours.epoch(normalized=normalized) for _ in range(arguments.repeats)]
        return Cost(
            sum(epoch.seconds for epoch in epochs) / len(epochs),
            sum(epoch.processor_seconds for epoch in epochs) / len(epochs),
        )

    for _ in range(arguments.pairs):
        for recipe, peer in peers.items():
            costs[recipe].append(peer.epoch())
        costs["ours"].append(several(normalized=False))
        costs["normalized"].append(several(normalized=True))
    ours.close()
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of class folders of photos, such as hymenoptera_data/train")
    parser.add_argument("--workers", type=int, default=2, help="processes of each side")
    parser.add_argument("--pairs", type=int, default=5, help="timed epochs of each side, cold and warm")
    parser.add_argument("--repeats", type=int, default=20, help="epochs of cvtrain's that are timed as one when warm")
    parser.add_argument("--reader", default="opencv", help="data.reader of cvtrain, for the cold epoch")
    parser.add_argument("--copies", type=int, default=1, help="link each photo so many times, for a longer first epoch")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: there is no such folder")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.copies > 1:
            link_copies(arguments.folder, Path(folder), arguments.copies)
            arguments.folder = Path(folder)
        try:
            compare(arguments)
        except ConfigError as error:
            parser.error(str(error))


def link_copies(photos: Path, folder: Path, copies: int) -> None:
    """Fill `folder` with `copies` links to each file in the class folders of `photos`."""
    for path in photos.glob("*/*"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        for number in range(copies):
            (folder / path.parent.name / f"{number}_{path.name}").symlink_to(path.absolute())


def compare(arguments: argparse.Namespace) -> None:
    """Time both sides on the photos of `arguments.folder`, and print what came of it."""
    torch.set_num_threads(1)
    splits, config = read_folder(arguments.folder, arguments.reader)
    num_ours, num_peer = len(splits.train), len(ImageFolder(arguments.folder))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()}), load "
        f"{os.getloadavg()[0]:.1f}, torch {torch.__version__}; {num_peer} photos, {arguments.workers} workers"
    )
    print("first epoch, from starting the workers")
    cold = measure_cold(splits, config, arguments)
    ours_cold = report("cvtrain, cache being built", cold["ours"], num_ours)
    peer_cold = best_peer(cold, num_peer)
    print("later epochs")
    warm = measure_warm(splits, config, arguments)
    ours_warm = report("cvtrain, uint8 for the device to normalise", warm["ours"], num_ours)
    normalized = report("cvtrain, normalised on the CPU too", warm["normalized"], num_ours)
    peer_warm = best_peer(warm, num_peer)
    print(f"cold: {ratio(ours_cold, peer_cold)}")
    print(f"warm, with the normalisation on the CPU: {ratio(normalized, peer_warm)}")
    print(f"warm: {ratio(ours_warm, peer_warm)}")
    print(f"ratio: {ours_warm.images_per_second / peer_warm.images_per_second:.2f}")


if __name__ == "__main__":
    main()
