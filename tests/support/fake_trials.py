"""A worker whose trials train nothing: they log what their parameters say, and fail as these say.

`optimizer.lr` is the metric's last value, reached in `trainer.epochs` equal steps; `seed` is a kind of end.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import cvtrain.sweep.trial_worker as trial_worker

END = {
    11: lambda: os.kill(os.getpid(), signal.SIGKILL),
    12: lambda: sys.exit("error: data.root=photos: no such folder\n  set data.root"),
    13: lambda: 1 / 0,
    14: lambda: time.sleep(60),
    15: lambda: sys.exit(0),
}


def run_trial(order):
    status = 1
    try:
        os.setsid()
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(order["environment"])
        train(dict(argument.split("=", 1) for argument in order["arguments"]))
        status = 0
    except SystemExit as request:
        if isinstance(request.code, str):
            print(request.code, file=sys.stderr)
        status = request.code if isinstance(request.code, int) else 2
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.exit(status)


def train(settings):
    folder = Path(settings["hydra.run.dir"].strip("'"))
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    (folder / "checkpoints").mkdir(exist_ok=True)
    with (folder / "starts.jsonl").open("a") as file:
        file.write(json.dumps({**settings, "threads": os.environ["OMP_NUM_THREADS"]}) + "\n")
    epochs, goal = int(settings.get("trainer.epochs", 3)), float(settings["optimizer.lr"])
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    from cvtrain.loggers.trial_channel import open_trial_channel

    channel = open_trial_channel()
    reason = "all epochs done"
    for epoch in range(done, epochs):
        value = goal * (epoch + 1) / epochs
        with metrics.open("a") as file:
            file.write(json.dumps({"step": epoch + 1, "epoch": epoch + 1, "val/accuracy": value}) + "\n")
        if epoch == epochs // 2 and not stopped:
            END.get(int(settings.get("seed", 0)), lambda: None)()
        with contextlib.suppress(ConnectionError):  # as a run's loggers do: the search was killed
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


def main():
    trial_worker.load = lambda overrides: int(os.environ.get("FAKE_GPUS", "0"))
    trial_worker.run_trial = run_trial
    trial_worker.main()


if __name__ == "__main__":
    main()
