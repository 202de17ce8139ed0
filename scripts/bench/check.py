"""Recall, false pairs and time of `cvtrain check` on a set with injected copies.

    python scripts/bench/check.py FOLDER [--images 10000] [--copies 200] [--sheet false.png]

FOLDER holds JPEG files at any depth, such as those of CIFAR-10. Of `images` distinct ones, `copies` of each kind get a
copy in val. A pair that was found and not injected counts as false: look at the sheet, since a set may have copies of
its own. Processor time is that of this process without workers, beside that of reading and decoding every file once;
the best of three rounds each.
"""

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from cvtrain.commands.check import CheckResult, check  # noqa: E402
from cvtrain.config.compose import compose_verb  # noqa: E402
from cvtrain.data.sources.build import build_splits  # noqa: E402

ROUNDS = 3
TURN = Image.Transpose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--sheet", type=Path, help="PNG of the pairs that were not injected")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "set")
        injected = make_set(options.folder, root, options.images, options.copies, rng)
        words = ["data=custom", f"data.root={root}", "data.num_workers=0"]
        config = compose_verb("check", words)[0]
        seconds: dict[str, list[float]] = {"decode": [], "check": []}
        for _ in range(ROUNDS):
            started = time.process_time()
            for source in build_splits(config.data).parts().values():
                for index in range(len(source)):
                    source.read(index)
            seconds["decode"].append(time.process_time() - started)
            started = time.process_time()
            result = check(config, run_dir=Path(folder))
            seconds["check"].append(time.process_time() - started)
        report(result, injected, options.sheet)
        best = {name: min(values) for name, values in seconds.items()}
        print(
            f"decode {best['decode']:.2f} s, check {best['check']:.2f} s: {best['check'] / best['decode']:.2f} decodes"
        )


def kinds(rng: np.random.Generator) -> dict[str, Callable[[Image.Image], bytes]]:
    """How a copy is made, by name."""

    def resized(image: Image.Image) -> Image.Image:
        factor = rng.uniform(0.5, 2.0)
        return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), 3)

    return {
        "re-encoded": lambda image: encode(image, int(rng.integers(50, 96))),
        "resized": lambda image: encode(resized(image), 90),
        "turned by EXIF": lambda image: encode(image, 90, exif=orientation(int(rng.integers(2, 9)))),
        "turned": lambda image: encode(image.transpose(TURN(int(rng.integers(2, 5)))), 90),
        "mirrored": lambda image: encode(image.transpose(TURN.FLIP_LEFT_RIGHT), 90),
        "mirrored, quality 50 to 95": lambda image: encode(
            image.transpose(TURN.FLIP_LEFT_RIGHT), int(rng.integers(50, 96))
        ),
    }


def make_set(source: Path, root: Path, num_images: int, num_copies: int, rng: np.random.Generator) -> dict[str, str]:
    """Write the set. Returns the kind of each copy by its path."""
    files = sorted(source.rglob("*.jp*g"))
    chosen = [files[index] for index in rng.permutation(len(files))[:num_images]]
    for number, file in enumerate(chosen):
        target = root / "train" / f"c{number % 10}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    injected = {}
    makers = {"same bytes": lambda image: b"", **kinds(rng)}
    for position, (kind, make) in enumerate(makers.items()):
        for place in range(num_copies):
            number = position * num_copies + place
            name = f"val/c{number % 10}/{number}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            data = chosen[number].read_bytes()
            (root / name).write_bytes(make(Image.open(io.BytesIO(data)).convert("RGB")) or data)
            injected[name] = kind
    return injected


def encode(image: Image.Image, quality: int, **options: bytes) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def report(result: CheckResult, injected: dict[str, str], sheet: Path | None) -> None:
    """Print recall by kind, and the pairs that were not injected."""
    images = result.images
    found: dict[str, int] = {}
    false = []
    for finding in (
        *result.findings.get("leakage", ()),
        *result.findings.get("copy", ()),
        *result.findings.get("conflict", ()),
    ):
        name, partner = images.name(finding.index), images.name(finding.partner)
        if name in injected and partner.partition("/")[2] == name.partition("/")[2]:
            found[injected[name]] = found.get(injected[name], 0) + 1
        else:
            false.append((finding.index, finding.partner, finding.score))
    for kind in dict.fromkeys(injected.values()):
        total = sum(each == kind for each in injected.values())
        print(f"{kind:<28}{found.get(kind, 0):>6} of {total}")
    print(f"{'not injected':<28}{len(false):>6}")
    if sheet is not None and false:
        shown = [np.concatenate([square(images.read(index)) for index in pair[:2]], axis=1) for pair in false[:60]]
        while len(shown) % 6:
            shown.append(np.zeros_like(shown[0]))
        rows = [np.concatenate(shown[first : first + 6], axis=1) for first in range(0, len(shown), 6)]
        Image.fromarray(np.concatenate(rows)).save(sheet)


def square(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((96, 96)))


if __name__ == "__main__":
    main()
