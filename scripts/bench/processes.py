"""Whole processes for the benchmarks: run with a stopwatch, in turn, and described with spread and machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Finished:
    """A process that has ended well: seconds from its start to its end, and what it printed."""

    seconds: float
    output: str


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Of a process: this checkout comes first, and byte code is kept (in `folder`) as it is in any installation."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    return inherited | own | extra


def run(arguments: Sequence[str], *, folder: Path, statuses: tuple[int, ...] = (0,), **extra: str) -> Finished:
    """Run Python with these arguments in `folder`; anything but an expected exit status ends the benchmark."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder, **extra),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode not in statuses:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return Finished(seconds, done.stdout)


def run_ranks(ranks: int, arguments: Sequence[str]) -> Any:
    """Run Python with these arguments in `ranks` fresh processes, a thread each; gives the JSON of its last line."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *arguments]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def describe_machine() -> str:
    """GPU, cores, processor and load, for the first line."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").partition(":")[2].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cores} cores of {model}, load {load}, Python {platform.python_version()}, torch {torch.__version__}"


def spread(seconds: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, n={len(seconds)})"


def in_turn(programs: Sequence[str], round_number: int) -> list[str]:
    """The programs, each first in its turn, so that a machine that gets slower favours none."""
    shift = round_number % len(programs)
    return [*programs[shift:], *programs[:shift]]


def describe_all(times: Mapping[str, Sequence[float]]) -> str:
    width = max(len(name) for name in times)
    return "\n".join(f"{name.ljust(width)} {spread(seconds)}" for name, seconds in times.items())
