"""Kill training runs with SIGKILL at random moments, let them go on, and compare them with untouched ones to the bit.

    python scripts/chaos.py                         50 kills over 10 runs, about 10 minutes on two cores
    python scripts/chaos.py --vary-workers          another number of data workers at each restart
    python scripts/chaos.py --runs 1 --kills 3 --epochs 2
    python scripts/chaos.py --cold                  a new interpreter for each start instead of a fork

Kills aim at steps, evaluations, saves, the start and the final report; where each one fell is told from what it left
behind. The last line says how many kills were in runs that ended equal; the exit status is 0 if all of them were.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from chaos_compare import differences, temporary_files  # noqa: E402
from chaos_processes import POLL_SECONDS, ColdStart, WarmStart, wait_for_end, wait_for_group  # noqa: E402

STEPS_PER_EPOCH = 45  # 1,438 training digits in batches of 32
EVAL_EVERY_STEPS = 20
# All that draws random numbers or remembers something, with saves as often as evaluations and in between.
SETTINGS = (
    "data=digits",
    "model=mlp",
    "model.hidden=[256,128]",
    "model.norm=batch",
    "model.dropout=0.1",
    "scheduler=cosine",
    "augment.transforms=[{RandomRotation: {degrees: 15}}]",
    "augment.mixup_alpha=0.2",
    "trainer.precision=fp32",
    "trainer.deterministic=true",
    "trainer.progress=false",
    "trainer.grad_accum_steps=2",
    "trainer.clip_grad_norm=1.0",
    "trainer.ema_decay=0.98",
    "trainer.log_every_steps=5",
    f"trainer.eval_every_steps={EVAL_EVERY_STEPS}",
    "checkpoint.every_steps=7",
    "checkpoint.keep_last=1",
    "resume=auto",
)
AIMS = ("step", "evaluation", "saving", "start", "step", "evaluation", "saving", "report")
# A run that takes this many times as long as the untouched one hangs.
PATIENCE = 20
TERM_SECONDS = 20  # workers of a killed run end by themselves within 5 s


@dataclass
class Pace:
    """How long the untouched run took, in seconds: until its first row, between the last row and the end, and all."""

    start: float
    report: float
    total: float


@dataclass
class Outcome:
    """A run that was killed, and how it ended."""

    seed: int
    landed: Counter[str] = field(default_factory=Counter)
    workers: list[int] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return sum(self.landed.values())


class Chaos:
    """Runs pairs of runs: one untouched, one killed.

    Args:
        starter: makes processes, `ColdStart` or `WarmStart`.
        folder: for the run folders; those of runs that differ stay.
        epochs: of each run.
        device: as `trainer.device`.
        max_workers: data workers are drawn from 0..max_workers at each start; None: always 2.
        rng: draws the moments.
    """

    def __init__(
        self,
        *,
        starter: ColdStart | WarmStart,
        folder: Path,
        epochs: int,
        device: str,
        max_workers: int | None,
        rng: random.Random,
    ) -> None:
        self.starter = starter
        self.folder = folder
        self.epochs = epochs
        self.device = device
        self.max_workers = max_workers
        self.rng = rng
        self.num_steps = epochs * STEPS_PER_EPOCH

    def run(self, seed: int, num_kills: int) -> Outcome:
        """Train once untouched and once with kills; compares the two."""
        whole, cut = self.folder / f"seed_{seed}_whole", self.folder / f"seed_{seed}_killed"
        outcome = Outcome(seed)
        pace = self._run_untouched(whole, seed)
        started = time.monotonic()
        groups = [self._kill_in_order(cut, seed, aim, pace, outcome) for aim in self._aims(num_kills)]
        groups.append(self._start(cut, seed, outcome))
        status = wait_for_end(self.starter, pace.total * PATIENCE)
        outcome.seconds = time.monotonic() - started
        if status != 0:
            outcome.problems.append(f"the last part ended with status {status}, see {_output(cut)}")
        else:
            outcome.problems += differences(whole, cut)
        for group in groups:
            left = wait_for_group(group, seconds=TERM_SECONDS)
            outcome.problems += [f"a process is left: {name}" for name in left]
        if not outcome.problems:
            for path in (whole, cut):
                shutil.rmtree(path)
                _output(path).unlink()
        return outcome

    def _aims(self, num_kills: int) -> list[tuple[str, int]]:
        """What to hit, and the step from which on to wait for it: one in each of `num_kills` parts of the run."""
        aims = []
        for number in range(num_kills):
            step = int(self.num_steps * 0.95 * (number + self.rng.random()) / num_kills)
            # Only the last kill may wait for the report: there is nothing to go on with after it.
            choice = [aim for aim in AIMS if aim != "report" or number == num_kills - 1]
            aims.append((self.rng.choice(choice), step))
        return aims

    def _run_untouched(self, run_dir: Path, seed: int) -> Pace:
        started = time.monotonic()
        self._start(run_dir, seed, Outcome(seed))
        first = last = None
        rows = 0
        while self.starter.status() is None:
            count = len(_rows(run_dir))
            if count > rows:
                rows, last = count, time.monotonic()
                first = first or last
            time.sleep(POLL_SECONDS)
        if self.starter.status() != 0 or first is None or last is None:
            sys.exit(f"the untouched run failed, see {_output(run_dir)}")
        ended = time.monotonic()
        return Pace(start=first - started, report=ended - last, total=ended - started)

    def _kill_in_order(self, run_dir: Path, seed: int, aim: tuple[str, int], pace: Pace, outcome: Outcome) -> int:
        """Start the next part, kill it when it does what is aimed at; gives its process group."""
        what, step = aim
        logged = len(_log(run_dir))
        pid = self._start(run_dir, seed, outcome)
        if what == "start":
            time.sleep(self.rng.uniform(0, pace.start))
        else:
            self._wait_for(what, step, run_dir, pace)
            spread = {"step": 0.15, "evaluation": 0.08, "saving": 0.02, "report": pace.report}[what]
            time.sleep(self.rng.uniform(0, spread))
        if self.starter.status() is None:
            os.kill(pid, signal.SIGKILL)
            if wait_for_end(self.starter, TERM_SECONDS) == -signal.SIGKILL:
                outcome.landed[_phase(run_dir, _log(run_dir)[logged:], self.num_steps)] += 1
        return pid

    def _wait_for(self, what: str, step: int, run_dir: Path, pace: Pace) -> None:
        deadline = time.monotonic() + pace.total * PATIENCE
        while self.starter.status() is None and time.monotonic() < deadline:
            rows = _rows(run_dir)
            if rows and rows[-1]["step"] >= (self.num_steps if what == "report" else step):
                last = rows[-1]
                if what == "step":
                    return
                if what == "evaluation" and _evaluates_next(last):
                    return
                if what == "saving" and temporary_files(run_dir / "checkpoints"):
                    return
                if what == "report" and "val/loss" in last:
                    return
            time.sleep(POLL_SECONDS)

    def _start(self, run_dir: Path, seed: int, outcome: Outcome) -> int:
        workers = 2 if self.max_workers is None else self.rng.randint(0, self.max_workers)
        outcome.workers.append(workers)
        arguments = [
            *SETTINGS,
            f"hydra.run.dir={run_dir}",
            f"seed={seed}",
            f"trainer.epochs={self.epochs}",
            f"trainer.device={self.device}",
            f"data.num_workers={workers}",
        ]
        return self.starter.start(arguments, _output(run_dir))


def _output(run_dir: Path) -> Path:
    """What the processes of a run print."""
    return run_dir.with_suffix(".txt")


def _log(run_dir: Path) -> str:
    path = run_dir / "train.log"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def _evaluates_next(row: dict[str, Any]) -> bool:
    """True if an evaluation comes after this row of metrics.jsonl."""
    if "train/epoch_loss" in row:
        return True
    at_end = row["step"] % STEPS_PER_EPOCH == 0
    return "train/loss" in row and row["step"] % EVAL_EVERY_STEPS == 0 and not at_end


def _phase(run_dir: Path, log: str, num_steps: int) -> str:
    """What a killed process was at, told from its part of the log and from what it left behind."""
    if temporary_files(run_dir):
        return "saving"
    if "parameter groups" not in log:
        return "start"
    rows = _rows(run_dir)
    if not rows:
        return "step"
    if rows[-1]["step"] == num_steps and "val/loss" in rows[-1]:
        return "report"
    return "evaluation" if _evaluates_next(rows[-1]) else "step"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs in all (default 50)")
    parser.add_argument("--runs", type=int, default=10, help="runs that they are spread over, at least (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and of the runs (default 0)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each run, 45 steps each (default 6)")
    parser.add_argument("--device", default="cpu", help="trainer.device of the runs (default cpu)")
    parser.add_argument("--vary-workers", action="store_true", help="0 to 3 data workers, drawn at each start, not 2")
    parser.add_argument("--cold", action="store_true", help="a new interpreter for each start, not a fork")
    parser.add_argument("--folder", type=Path, help="for the run folders (default: a temporary one)")
    arguments = parser.parse_args()
    if arguments.kills < arguments.runs or arguments.runs < 1:
        parser.error("at least one run, and at least one kill for each")

    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="chaos_"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    starter = ColdStart() if arguments.cold or arguments.device != "cpu" else WarmStart()
    chaos = Chaos(
        starter=starter,
        folder=folder,
        epochs=arguments.epochs,
        device=arguments.device,
        max_workers=3 if arguments.vary_workers else None,
        rng=random.Random(arguments.seed),
    )
    try:
        outcomes = run_all(chaos, arguments.runs, arguments.kills, arguments.seed)
    finally:
        starter.close()
    if not any(folder.iterdir()):
        folder.rmdir()
    return report(outcomes, folder)


def run_all(chaos: Chaos, num_runs: int, num_kills: int, first_seed: int) -> list[Outcome]:
    """Runs until there are enough of them and of kills: a run may end before its last kill."""
    outcomes: list[Outcome] = []
    print(f"{'seed':>6}  {'kills':>5}  {'seconds':>7}  {'workers':<18}  {'where':<50}  result", flush=True)
    while (left := num_kills - sum(outcome.kills for outcome in outcomes)) > 0 or len(outcomes) < num_runs:
        runs_left = max(1, num_runs - len(outcomes))
        outcome = chaos.run(first_seed + len(outcomes), max(1, round(left / runs_left)))
        outcomes.append(outcome)
        where = ", ".join(f"{count} {phase}" for phase, count in sorted(outcome.landed.items()))
        workers = " ".join(map(str, outcome.workers))
        result = "; ".join(outcome.problems) or "equal"
        print(f"{outcome.seed:>6}  {outcome.kills:>5}  {outcome.seconds:>7.1f}  {workers:<18}  {where:<50}  {result}")
        sys.stdout.flush()
    return outcomes


def report(outcomes: list[Outcome], folder: Path) -> int:
    """Print the sums; 0 if every run ended equal."""
    landed = sum((outcome.landed for outcome in outcomes), Counter[str]())
    kills = sum(outcome.kills for outcome in outcomes)
    equal = sum(outcome.kills for outcome in outcomes if not outcome.problems)
    print(f"{len(outcomes)} runs; kills: {', '.join(f'{count} {phase}' for phase, count in sorted(landed.items()))}")
    if equal < kills:
        print(f"the folders of runs that differ are kept in {folder}")
    print(f"{equal} of {kills} equal to the bit")
    return 0 if equal == kills else 1


if __name__ == "__main__":
    sys.exit(main())
