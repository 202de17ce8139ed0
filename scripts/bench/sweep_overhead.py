"""What a trial of a search costs beyond its training: engine=local beside --multirun and separate processes.

    python scripts/bench/sweep_overhead.py --trials 20
    python scripts/bench/sweep_overhead.py --trials 5 --skip-processes

Every way runs the same tiny trainings of an MLP on handwritten digits, one after another. A trial's overhead is the
wall time of the whole command, less what the trials' own summaries say that they took, over the number of trials.
For engine=local it is also given without the start of the command, from the moment at which the first trial starts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = ["trainer.epochs=1", "trainer.precision=fp32", "model.hidden=[32]", "augment.preview=false"]
BAR = 0.5


def rates(count: int) -> list[float]:
    return [round(0.001 * (number + 1), 6) for number in range(count)]


def run(folder: Path, *arguments: str) -> float:
    """Wall seconds of one cvtrain command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "cvtrain", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if result.returncode:
        sys.exit(f"cvtrain {' '.join(arguments)}\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return seconds


def own_seconds(folder: Path) -> list[float]:
    """What the runs below a folder say that they took."""
    return [json.loads(path.read_text())["wall_seconds"] for path in sorted(folder.rglob("summary.json"))]


def local(folder: Path, count: int) -> tuple[float, float]:
    """Seconds per trial beyond training: of the whole command, and from the first trial's start on."""
    (folder / "grid.yaml").write_text(f"method: grid\nparameters:\n  optimizer.lr: {{values: {rates(count)}}}\n")
    started = time.time()
    wall = run(folder, "sweep", "sweep=grid.yaml", "engine=local", *SETTINGS)
    own = own_seconds(folder)
    assert len(own) == count, len(own)
    trials = folder / "runs" / "sweeps" / "grid" / "trials"
    first = min(path.stat().st_ctime for path in trials.glob("*/config.yaml")) - started
    last = max((path / "summary.json").stat().st_mtime for path in trials.iterdir()) - started
    return (wall - sum(own)) / count, (last - first - sum(own[1:])) / max(1, count - 1) - own[0] / max(1, count - 1)


def multirun(folder: Path, count: int) -> float:
    values = ",".join(str(rate) for rate in rates(count))
    wall = run(folder, "--multirun", f"optimizer.lr={values}", *SETTINGS)
    own = own_seconds(folder)
    assert len(own) == count, len(own)
    return (wall - sum(own)) / count


def processes(folder: Path, count: int) -> float:
    wall = sum(run(folder, f"optimizer.lr={rate}", *SETTINGS) for rate in rates(count))
    return (wall - sum(own_seconds(folder))) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=1, help="times that all ways are run in turn")
    parser.add_argument("--skip-processes", action="store_true", help="leave the slowest way out")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before the first run")
    results: dict[str, list[float]] = {"engine=local": [], "engine=local, started": [], "--multirun": []}
    if not arguments.skip_processes:
        results["separate processes"] = []
    for _ in range(arguments.pairs):
        for name in ("engine=local", "--multirun", "separate processes"):
            if name not in results:
                continue
            with tempfile.TemporaryDirectory() as text:
                if name == "engine=local":
                    whole, started = local(Path(text), arguments.trials)
                    results[name].append(whole)
                    results["engine=local, started"].append(started)
                else:
                    way = multirun if name == "--multirun" else processes
                    results[name].append(way(Path(text), arguments.trials))
    for name, values in results.items():
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        print(f"{name:24s} {statistics.median(values):.3f} s per trial beyond its training{spread}")
    median = statistics.median(results["engine=local"])
    print(f"bar: {BAR} s; {'kept' if median < BAR else 'missed'} by {abs(BAR - median):.3f} s")
    other = results.get("separate processes") or results["--multirun"]
    print(f"ratio: {median / statistics.median(other):.2f}")


if __name__ == "__main__":
    main()
