"""A million files: how long listing them takes, and what they cost each worker in memory.

    python scripts/bench/scan.py
    python scripts/bench/scan.py --images 1000000 --folder /scratch

Makes a folder of class folders in which every file is a link to one small JPEG (a million links take a minute to make
and to remove, and no room but their names), lists it as a run does and as torchvision's ImageFolder does. Then workers
read a thousandth of it, spread over the whole index, in each of three epochs by the loader that training uses, with a
small set of 1,000 images beside it. What a worker has for itself (the private pages of /proc/PID/smaps_rollup) is read
at the end of each epoch. For information the same with torch's DataLoader over ImageFolder, whose list of tuples is
copied page by page as workers touch it; it reads no image, so that it can touch every entry.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from processes import describe_machine, run

BAR_MB = 60.0
CLASSES, EPOCHS, WORKERS, SMALL = 1000, 3, 2, 1000
BATCH, BATCHES = 100, 10
EXTENSIONS = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="files in the folder")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of the scans")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed; default: the system's")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, root = arguments.measure
        print(json.dumps({"cvtrain": worker_memory, "tuples": tuple_memory}[kind](Path(root))))
        return
    print(describe_machine())
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        began = time.perf_counter()
        make_folder(folder / "large", arguments.images)
        make_folder(folder / "small", SMALL)
        print(
            f"{arguments.images:,} links in {CLASSES} folders made in {time.perf_counter() - began:.0f} s", flush=True
        )
        compare_scans(folder, arguments.pairs)
        small, large = (measure_apart("cvtrain", folder / size) for size in ("small", "large"))
        describe_memory("cvtrain", small, large)
        describe_memory("ImageFolder", *(measure_apart("tuples", folder / size) for size in ("small", "large")))
        above = max(large) - max(small)
        print(f"bar: {BAR_MB:g} MB above, no growth from epoch 2 to 3 ({large[2] - large[1]:+.1f} MB)")
        print(f"ratio: {BAR_MB / max(above, 0.1):.2f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(root: Path, num_images: int) -> None:
    """CLASSES folders of links to one image each."""
    classes = min(CLASSES, num_images // 10)
    for number in range(classes):
        folder = root / f"class_{number:04d}"
        folder.mkdir(parents=True)
        first = folder / "image_0000000.jpg"
        Image.new("RGB", (40, 30), (number % 256, 0, 0)).save(first)
        for image in range(1, num_images // classes):
            os.link(first, folder / f"image_{image:07d}.jpg")


# ---------------------------------------------------------------------- scans


def compare_scans(folder: Path, pairs: int) -> None:
    """Print the seconds of each way to list the large folder; the system has the names in memory for all of them."""
    root = folder / "large"
    ways: dict[str, Callable[[], object]] = {
        "cvtrain": lambda: splits_of(root),
        "torchvision ImageFolder": lambda: image_folder(root),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(pairs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if pair:  # the first round imports
                times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        print(f"{name:24} {statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def splits_of(root: Path) -> object:
    from cvtrain.data.images.reader import build_reader
    from cvtrain.data.sources.folder import splits_of_folder
    from cvtrain.data.sources.splits import SplitSettings

    reader = build_reader(library="pillow", channels=3, alpha_color=(255, 255, 255), max_image_pixels=10**8)
    return splits_of_folder(str(root), extensions=EXTENSIONS, reader=reader, settings=SplitSettings(0.1))


def image_folder(root: Path) -> object:
    from torchvision.datasets import ImageFolder

    return ImageFolder(str(root))


# ---------------------------------------------------------------------- memory


def measure_apart(kind: str, root: Path) -> list[float]:
    """`worker_memory` or `tuple_memory` in a process of its own, whose workers inherit nothing from the others."""
    finished = run([str(Path(__file__).resolve()), "--measure", kind, str(root)], folder=root.parent)
    return json.loads(finished.output)


def worker_memory(root: Path) -> list[float]:
    """MB that a worker has for itself at the end of each epoch, the largest of all workers."""
    from cvtrain.data.images.resize import build_eval_transform
    from cvtrain.data.loader.batch import BatchDataset
    from cvtrain.data.loader.loader import BatchLoader
    from cvtrain.data.loader.sampler import EpochSampler

    source = splits_of(root).train  # type: ignore[attr-defined]
    resize = build_eval_transform(image_size=32, resize="squash", crop_fraction=1.0)
    dataset = BatchDataset(source=source, eval_transform=resize, image_size=32, channels=3, seed=0)
    # Shuffled: each epoch's images lie all over the index.
    plan = EpochSampler(len(source), BATCH, 0, True, limit_batches=BATCHES)
    loader = BatchLoader(dataset=dataset, plan=plan, num_workers=WORKERS)
    try:
        return [largest_worker(loader.epoch(epoch)) for epoch in range(EPOCHS)]
    finally:
        loader.close()


def tuple_memory(root: Path) -> list[float]:
    """The same for a list of (path, class) as ImageFolder has it, of which each epoch looks at every entry."""
    from torch.utils.data import DataLoader, Dataset

    samples = image_folder(root).samples  # type: ignore[attr-defined]

    class Tuples(Dataset[int]):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> int:
            path, label = samples[index]
            return len(path) + label

    loader = DataLoader(Tuples(), batch_size=1000, num_workers=WORKERS, persistent_workers=True, shuffle=True)
    return [largest_worker(iter(loader)) for _ in range(EPOCHS)]


def largest_worker(batches: Iterator[object]) -> float:
    """MB of private memory of the largest child process when `batches` are through."""
    for _ in batches:
        pass
    return max(private_mb(pid) for pid in children())


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def private_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def describe_memory(name: str, small: list[float], large: list[float]) -> None:
    def shown(values: list[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values)

    print(f"{name:12} private MB of a worker after epochs 1 to {EPOCHS}: {shown(small)} with {SMALL} images")
    print(f"{'':12} {shown(large)} with all: {max(large) - max(small):+.1f} MB", flush=True)


if __name__ == "__main__":
    main()
