"""Images per second of training from a folder of JPEGs, against the same step on one batch held on the device.

    python scripts/bench/throughput.py                                  ResNet-18 and ResNet-50 at 224 on a GPU
    python scripts/bench/throughput.py --root photos --pairs 5          a folder of class folders of your own
    python scripts/bench/throughput.py --archs resnet18 --image-size 64 --batch-size 16 --images 256     for a CPU

Both are `Trainer`'s own code in one process, in turn: `folder` is `train_epoch` (loader, transfer, step and logging),
after one epoch that fills the cache; `held` calls `train_step` as many times on one batch. timm's loader and step, and
Lightning's Trainer, do the same from ImageFolder where they are installed. Without --root, 256 photos of noise and
gradients are made, 500 x 375, and linked as often as --images says. The last line is folder by held, the lowest of all
networks; peak memory is that of the held batch's steps.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from in_process import compose, synchronize
from PIL import Image
from processes import describe_machine
from torch import nn

from cvtrain.data.loader.prefetch import batch_to_device
from cvtrain.runtime.memory import peak_memory_gib
from cvtrain.runtime.precision import autocast, backend_flags
from cvtrain.training.build import Run, build_run

NUM_PHOTOS = 256
CLASSES = ("one", "other")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["resnet18", "resnet50"] if on_gpu else ["resnet18"])
    parser.add_argument("--root", type=Path, help="folder with train/ and val/ of class folders")
    parser.add_argument("--images", type=int, default=25_600 if on_gpu else 256, help="of the made folder")
    parser.add_argument("--image-size", type=int, default=224 if on_gpu else 64)
    parser.add_argument("--batch-size", type=int, default=256 if on_gpu else 16)
    parser.add_argument("--workers", type=int, default=16 if on_gpu else 1, help="of the peers; cvtrain chooses")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("settings", nargs="*", help="settings of cvtrain, such as trainer.compile=true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        root = arguments.root or make_folder(Path(name) / "photos", arguments.images)
        ratios = [measure(arch, root, Path(name) / arch, arguments) for arch in arguments.archs]
    print(f"ratio: {min(ratios):.2f}")


def measure(arch: str, root: Path, run_dir: Path, arguments: argparse.Namespace) -> float:
    """Print what each way reaches with one network; gives folder by held."""
    run_dir.mkdir()
    settings = [
        "data=custom",
        f"data.root={root}",
        f"data.image_size={arguments.image_size}",
        f"data.batch_size={arguments.batch_size}",
        f"model={arch}",
        "model.pretrained=false",
        "augment.transforms=[{RandomResizedCrop:{scale:[0.35,1.0]}},RandomHorizontalFlip]",
        "optimizer=sgd",
        "optimizer.lr=0.01",
        "trainer.epochs=1000",
        "trainer.progress=false",
    ]
    if arch.startswith("resnet"):
        settings.append("model.stem=imagenet")  # as the peers have it, at any size
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run = build_run(compose(*settings, *arguments.settings), run_dir)
    trainer = run.trainer
    with backend_flags(trainer.device, trainer.dtype, deterministic=False):
        held(run)
    peaks = peak_memory_gib(trainer.device)
    print(f"{arch} peak memory {', '.join(f'{place} {gib:.2f} GiB' for place, gib in peaks.items())}", flush=True)
    ways: dict[str, Callable[[], float]] = {"held": lambda: held(run), "folder": lambda: folder(run)}
    if not arguments.no_peers:
        ways |= peers(arch, root, trainer.device, trainer.dtype, arguments)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with backend_flags(trainer.device, trainer.dtype, deterministic=False):
        for pair in range(arguments.pairs + 1):
            for way, rate in ways.items():
                value = rate()
                if pair:  # the first round fills caches, starts workers, chooses kernels
                    rates[way].append(value)
    run.loaders.close()
    run.logger.finish(0)
    for way, values in rates.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"{arch} {way:10s} median {statistics.median(values):9,.0f} images/s, {spread}", flush=True)
    pairs = zip(rates["folder"], rates["held"], strict=True)
    return statistics.median(one / other for one, other in pairs)


def folder(run: Run) -> float:
    """Images per second of one epoch of the trainer's loop."""
    trainer = run.trainer
    synchronize(trainer.device)
    started = time.perf_counter()
    trainer.train_epoch()
    synchronize(trainer.device)
    trainer.state.epoch_end_due = False
    return run.loaders.train.num_images / (time.perf_counter() - started)


def held(run: Run) -> float:
    """Images per second of as many steps on the same batch."""
    trainer, loader = run.trainer, run.loaders.train
    trainer._set_train_mode()
    batch = batch_to_device(next(iter(loader.epoch(0))), trainer.device)
    synchronize(trainer.device)
    started = time.perf_counter()
    for _ in range(loader.num_batches):
        trainer.train_step(batch)
    synchronize(trainer.device)
    return loader.num_batches * len(batch) / (time.perf_counter() - started)


def peers(
    arch: str, root: Path, device: torch.device, dtype: torch.dtype, arguments: argparse.Namespace
) -> dict[str, Callable[[], float]]:
    """Those that are installed: images per second of one epoch."""
    found: dict[str, Callable[[], float]] = {}
    for name, build in (("timm", build_timm), ("lightning", build_lightning)):
        try:
            found[name] = build(arch, root / "train", device, dtype, arguments)
        except ImportError as error:
            print(f"{name}: not measured: {error}")
    return found


def build_timm(
    arch: str, root: Path, device: torch.device, dtype: torch.dtype, arguments: argparse.Namespace
) -> Callable[[], float]:
    """timm's loader with its prefetcher, and the step of its training script."""
    import timm
    from timm.data import create_dataset, create_loader

    size = arguments.image_size
    loader = create_loader(
        create_dataset("", root=str(root)), input_size=(3, size, size), batch_size=arguments.batch_size,
        is_training=True, scale=(0.35, 1.0), color_jitter=None, num_workers=arguments.workers, device=device,
        mean=MEAN, std=STD, persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    model = timm.create_model(arch, num_classes=len(CLASSES)).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def epoch() -> float:
        synchronize(device)
        started, count = time.perf_counter(), 0
        for images, labels in loader:
            images, labels = images.to(device, memory_format=torch.channels_last), labels.to(device)
            with autocast(device, dtype):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            count += len(images)
        synchronize(device)
        return count / (time.perf_counter() - started)

    return epoch


def build_lightning(
    arch: str, root: Path, device: torch.device, dtype: torch.dtype, arguments: argparse.Namespace
) -> Callable[[], float]:
    """Lightning's Trainer around a LightningModule, with torchvision's v2 transforms in the workers."""
    import lightning
    import torchvision
    from torchvision.transforms import v2

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torchvision.models.get_model(arch, num_classes=len(CLASSES))
            self.model = self.model.to(memory_format=torch.channels_last)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.model(images.to(memory_format=torch.channels_last)), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    transforms = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(arguments.image_size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = torch.utils.data.DataLoader(
        torchvision.datasets.ImageFolder(str(root), transforms), batch_size=arguments.batch_size, shuffle=True,
        num_workers=arguments.workers, persistent_workers=arguments.workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=0,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
    )  # fmt: skip
    module = Classifier()

    def epoch() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit_loop.max_epochs = trainer.current_epoch + 1
            synchronize(device)
            started = time.perf_counter()
            trainer.fit(module, loader)
            synchronize(device)
        return len(loader.dataset) / (time.perf_counter() - started)  # type: ignore[arg-type]

    return epoch


def make_folder(root: Path, count: int) -> Path:
    """A folder of `count` JPEGs in train/ and a few in val/, which are links to 256 made photos."""
    rng = np.random.default_rng(0)
    originals = root / "originals"
    originals.mkdir(parents=True)
    for number in range(min(NUM_PHOTOS, count)):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        image = (image + rng.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(originals / f"{number}.jpg", quality=90)
    files = sorted(originals.iterdir())
    folders = root / "classes"
    for split, total in (("train", count), ("val", 2 * len(CLASSES))):
        for name in CLASSES:
            (folders / split / name).mkdir(parents=True)
        for number in range(total):
            target = folders / split / CLASSES[number % len(CLASSES)] / f"{number:06d}.jpg"
            target.symlink_to(files[number % len(files)])
    return folders


if __name__ == "__main__":
    main()
