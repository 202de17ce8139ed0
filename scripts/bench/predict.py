"""Images/s of `cvtrain predict` beside a bare loop of decoding and forward passes, and its memory by number of images.

    python scripts/bench/predict.py                    5 rounds, in turn, in this process; medians and their ratio
    python scripts/bench/predict.py --memory 10000     peak memory of a command over so many links, in MB

The bare loop reads, resizes, normalises and scores batches of the same images with the same network, and keeps nothing.
The links of --memory lead to an empty file, which takes no time to read: memory does not depend on what is in a row.
"""

import argparse
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import cvtrain  # noqa: E402
from cvtrain.commands.predict import predict  # noqa: E402
from cvtrain.config.compose import compose_verb  # noqa: E402
from cvtrain.runtime.console import ConsoleHandler  # noqa: E402

TRAINING = ("data=custom", "data.root=photos", "augment=none", "trainer.epochs=1", "plots=false", "data.num_workers=0")
CHECKPOINT = "checkpoint=run/checkpoints/best.pt"
LINKS_PER_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, metavar="IMAGES")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure_memory()
        return
    logging.getLogger("cvtrain").addHandler(ConsoleHandler())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_photos(Path("photos"), 32)
        network = ("model=mlp", "data.image_size=8") if options.memory else network_of(options)
        cvtrain.train(*TRAINING, *network, run_dir="run")
        if options.memory:
            make_links(Path("links"), options.memory)
            subprocess.run([sys.executable, __file__, "--child"], check=True)
        else:
            make_photos(Path("new"), options.images)
            compare(options)


def network_of(options: argparse.Namespace) -> tuple[str, ...]:
    return (f"model={options.model}", "model.pretrained=false", f"data.image_size={options.image_size}")


def compare(options: argparse.Namespace) -> None:
    """Run both in turn and print their medians."""
    classifier = cvtrain.load("run/checkpoints/best.pt")
    paths = sorted(str(path) for path in Path("new").rglob("*.jpg"))
    rates: dict[str, list[float]] = {"predict": [], "bare loop": []}
    for number in range(options.rounds + 1):
        for name, run in (("bare loop", lambda: bare_loop(classifier, paths)), ("predict", run_predict)):
            seconds = run()
            if number:  # the first round warms up
                rates[name].append(len(paths) / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:<10} {medians[name]:8.1f} images/s  ({min(values):.1f} to {max(values):.1f})")
    print(f"ratio: {medians['predict'] / medians['bare loop']:.2f}")


def bare_loop(classifier: cvtrain.Classifier, paths: list[str]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(paths), classifier.batch_size):
            read = [classifier.preprocess(path) for path in paths[first : first + classifier.batch_size]]
            classifier.module(torch.stack(read)).softmax(1).topk(2).values.cpu()
    return time.perf_counter() - started


def run_predict() -> float:
    """Predict all images, from the list of files to the finished table; seconds without the loading of the network."""
    config = compose_verb("predict", [CHECKPOINT, "source=new", "overwrite=true", "data.num_workers=0"])[0]
    return predict(config).seconds


def measure_memory() -> None:
    words = (CHECKPOINT, "source=links", "rows_per_part=16384", "batch_size=256", "data.num_workers=0", "device=cpu")
    result = predict(compose_verb("predict", words)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{result.num_images:,} images: peak {peak:,.0f} MB")


def make_photos(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat(np.repeat(rng.integers(0, 255, (47, 63, 3), dtype=np.uint8), 8, axis=0), 8, axis=1)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg")


def make_links(root: Path, count: int) -> None:
    empty = Path("empty.jpg").absolute()
    empty.touch()
    for number in range(count):
        folder = root / f"{number // LINKS_PER_FOLDER:04d}"
        if number % LINKS_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        os.symlink(empty, f"{folder}/photo_{number:07d}.jpg")  # noqa: PTH211


if __name__ == "__main__":
    main()
