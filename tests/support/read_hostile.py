"""Reads hostile files with every reader, in a process of its own, whose memory and stderr the test looks at.

`python read_hostile.py SEED COUNT FOLDER` prints one JSON object: the growth of the peak memory in MB; and for each
file with each reader what came out of it, a digest of the pixels or the cause, and the seconds of CPU time.
"""

import hashlib
import json
import resource
import sys
import time
import warnings
from pathlib import Path

from hostile_images import MAX_PIXELS, hostile_files
from made_images import READERS, encode, photo

from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.reader import build_reader


def main(seed: int, count: int, folder: Path) -> None:
    warnings.simplefilter("error")
    readers = {name: build_reader(library=name, max_image_pixels=MAX_PIXELS) for name in READERS}
    for reader in readers.values():  # the libraries are loaded now
        for image_format in ("JPEG", "PNG"):
            reader.decode(encode(photo(), image_format), "warm-up")  # type: ignore[attr-defined]
    files = hostile_files(seed, count)
    paths = {file.name: file.write(folder) for file in files}
    before = peak_mb()
    outcomes = {name: {library: outcome(reader, path) for library, reader in readers.items()}
                for name, path in paths.items()}  # fmt: skip
    print(json.dumps({"growth_mb": peak_mb() - before, "outcomes": outcomes}))


def outcome(reader, path: Path) -> tuple[str, str, float]:  # type: ignore[no-untyped-def]
    start = time.process_time()
    try:
        pixels = reader(path)
        result = "good", f"{pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}"
    except BadImageError as error:
        result = "bad", error.cause
    return (*result, time.process_time() - start)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
