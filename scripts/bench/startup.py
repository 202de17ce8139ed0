"""From the start of the process to the end of the first optimizer step, by the default command; and a wrong command.

    python scripts/bench/startup.py --pairs 5

Bars: under 1.5 s besides `import torch`, which is measured in turn; a wrong key is answered in under 0.5 s. The last
line is 1.5 s by what was measured: 1 and more keeps the bar.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from processes import describe_machine, run, spread

BAR, WRONG_KEY_BAR = 1.5, 0.5
IMPORT_TORCH = "import time; began = time.perf_counter(); import torch; print(time.perf_counter() - began)"
# The first step ends the process: what comes later is not measured.
FIRST_STEP = """
import os, sys, time
from cvtrain.cli.main import main
from cvtrain.training.trainer import Trainer

plain = Trainer.train_step

def step(self, batch):
    plain(self, batch)
    print("first step", time.time(), flush=True)
    os._exit(0)

Trainer.train_step = step
sys.argv = ["cvtrain"]
main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds of all three")
    arguments = parser.parse_args()
    print(describe_machine())
    torch_seconds, besides, wrong = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pair in range(arguments.pairs + 1):
            importing = float(run(["-c", IMPORT_TORCH], folder=folder).output)
            first_step = seconds_to_first_step(folder)
            answer = run(["-m", "cvtrain", "optimzer.lr=0.1"], folder=folder, statuses=(2,)).seconds
            if pair == 0:
                continue  # it writes the byte code, and brings the files into memory
            torch_seconds.append(importing)
            besides.append(first_step - importing)
            wrong.append(answer)
    print(f"import torch                   {spread(torch_seconds)}")
    print(f"first step, less import torch  {spread(besides)}, bar {BAR} s")
    print(f"wrong key                      {spread(wrong)}, bar {WRONG_KEY_BAR} s")
    print(f"ratio: {BAR / statistics.median(besides):.2f}")


def seconds_to_first_step(folder: Path) -> float:
    import time

    started = time.time()
    output = run(["-c", FIRST_STEP], folder=folder).output
    line = next(line for line in output.splitlines() if line.startswith("first step"))
    return float(line.split()[-1]) - started


if __name__ == "__main__":
    main()
