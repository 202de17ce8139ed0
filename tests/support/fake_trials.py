"""Trials that train nothing: they log what their parameters say, and end as these say.

`optimizer.lr`, and 0.01 more for each fold, is the metric's last value, reached in `trainer.epochs` equal steps; `seed`
is a kind of end.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from cvtrain.loggers.trial_channel import TrialChannel
from cvtrain.sweep.workers import TrialCommand, become_trial

END = {
    11: lambda: os.kill(os.getpid(), signal.SIGKILL),
    12: lambda: sys.exit("error: data.root=photos: no such folder\n  set data.root"),
    13: lambda: 1 / 0,
    14: lambda: time.sleep(60),
    15: lambda: sys.exit(0),
}


def run_trial(command: TrialCommand, connection) -> None:
    """Stands in for `cvtrain.sweep.workers.run_trial`."""
    become_trial(command)
    train(
        dict(argument.split("=", 1) for argument in command.arguments),
        TrialChannel(connection=connection, metric=command.metric),
    )


def count_gpus() -> int:
    return 3


def train(settings: dict[str, str], channel: TrialChannel) -> None:
    folder = Path(settings["hydra.run.dir"].strip("'"))
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    (folder / "checkpoints").mkdir(exist_ok=True)
    variables = {"threads": os.environ["OMP_NUM_THREADS"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps({**settings, **variables}) + "\n")
    fold = int(settings.get("data.fold", "0").strip("'").partition("/")[0])
    epochs, goal = int(settings.get("trainer.epochs", 3)), float(settings["optimizer.lr"]) + 0.01 * fold
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    reason = "all epochs done"
    for epoch in range(done, epochs):
        value = goal * (epoch + 1) / epochs
        with metrics.open("a") as file:
            file.write(json.dumps({"step": epoch + 1, "epoch": epoch + 1, "val/accuracy": value}) + "\n")
        if epoch == epochs // 2 and not stopped:
            END.get(int(settings.get("seed", 0)), lambda: None)()
        with contextlib.suppress(ConnectionError, OSError):  # as a run's loggers do: the search was killed
            channel.log_metrics(epoch + 1, epoch, {"val/accuracy": value})
        (folder / "checkpoints" / "best.pt").write_text(str(value))
        if channel.stop_requested and epoch + 1 < epochs:
            reason = "pruned: its search has no more use for it"
            break
        if stopped:
            (folder / "summary.json").write_text(json.dumps({"end_reason": "interrupted"}))
            sys.exit(143)
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    (folder / "summary.json").write_text(json.dumps({"end_reason": reason}))


def use() -> None:
    """Let searches of this process run these trials."""
    import cvtrain.sweep.workers as workers

    workers.run_trial, workers.count_gpus, workers.PRELOADED = run_trial, count_gpus, ("fake_trials",)
