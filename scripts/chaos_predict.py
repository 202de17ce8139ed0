"""Kill `cvtrain predict` with SIGKILL at random moments, let it go on, and compare with an undisturbed table.

    python scripts/chaos_predict.py                   20 kills, about two minutes on two cores
    python scripts/chaos_predict.py --kills 5 --format jsonl

After each kill the next command must go on after all parts that were complete, and at the end the table must equal the
undisturbed one byte by byte (for .parquet: row by row). The exit status is 0 if all of that held.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import cvtrain  # noqa: E402
from cvtrain.commands.from_python import run_logging  # noqa: E402
from cvtrain.commands.predict import predict  # noqa: E402
from cvtrain.config.compose import compose_verb  # noqa: E402
from cvtrain.config.prediction_paths import JOB  # noqa: E402
from cvtrain.report.prediction_table import read_rows  # noqa: E402

PART = 16
TRAINING = (
    *("data=custom", "data.image_size=16", "data.batch_size=8", "data.num_workers=0", "model=mlp", "model.hidden=[32]"),
    *("trainer.epochs=1", "trainer.device=cpu", "trainer.precision=fp32", "plots=false", "augment=none"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), default="csv")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_photos(Path("photos"), options.images)
        run = child(lambda: cvtrain.train(*TRAINING, "data.root=photos", run_dir="run"))
        assert run == 0
        whole, table = f"whole.{options.format}", f"table.{options.format}"
        started = time.monotonic()
        assert child(lambda: run_predict(whole, options.workers)) == 0
        seconds_per_part = (time.monotonic() - started) * PART / options.images
        num_wrong = kill_often(table, options, seconds_per_part)
        equal = list(read_rows(Path(whole))) == list(read_rows(Path(table)))
        if options.format != "parquet":
            equal = equal and Path(whole).read_bytes() == Path(table).read_bytes()
        left = sorted(path.name for path in Path().iterdir() if path.name.startswith(("table", ".table")))
        print(f"{options.kills} kills; {num_wrong} lost more than a part; equal: {equal}; left: {left}")
        return int(not equal or num_wrong > 0 or left != [table])


def kill_often(table: str, options: argparse.Namespace, seconds_per_part: float) -> int:
    """Kill the command `options.kills` times, starting again when it got to its end, and let it finish."""
    rng, num_wrong, num_kills = random.Random(0), 0, 0
    folder = Path(f"{table}.parts")
    while True:
        if Path(table).exists() and not (folder / JOB).exists():  # the last kill came when all was done
            Path(table).unlink()
        complete = len(list(folder.glob("part-*"))) if (folder / JOB).exists() else 0
        pid = fork(lambda: run_predict(table, options.workers))
        if num_kills == options.kills:
            assert os.waitpid(pid, 0)[1] == 0
            return num_wrong
        wanted = complete + rng.choice((0, 0, 1, 2, 5))  # no new part: also while it starts
        done = status = 0
        while not done and len(list(folder.glob("part-*"))) < wanted:
            time.sleep(0.002)
            done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(rng.uniform(0, 3 * seconds_per_part))
        done, status = (done, status) if done else os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            Path(table).unlink()
            continue
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        num_kills += 1
        now = len(list(folder.glob("part-*")))
        log = Path("log.txt").read_text(encoding="utf-8") if Path("log.txt").exists() else ""
        went_on = f"going on after {min(complete * PART, options.images):,} of" in log if complete else True
        has_begun = now > complete
        was_done = Path(table).exists()
        num_wrong += not was_done and (now < complete or (has_begun and not went_on))
        print(f"kill {num_kills}: {complete} parts before, {now} after", flush=True)


def run_predict(table: str, workers: int) -> None:
    words = ("checkpoint=run/checkpoints/best.pt", "source=photos", "device=cpu", "resume=auto", "embeddings=true")
    words += (f"output={table}", f"rows_per_part={PART}", f"data.num_workers={workers}")
    config = compose_verb("predict", words)[0]
    with run_logging(Path("log.txt"), "INFO"):
        predict(config)


def child(task) -> int:
    return os.waitpid(fork(task), 0)[1]


def fork(task) -> int:
    """Run `task` in a fork of this process, which has imported everything and started nothing."""
    Path("log.txt").unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            task()
            status = 0
        finally:
            os._exit(status)
    return pid


def make_photos(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 156, (40, 50, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg")


if __name__ == "__main__":
    sys.exit(main())
