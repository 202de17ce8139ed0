"""Whether a bayes search finds more than a random one: the best of equally many trials on digits, over several seeds.

    python scripts/bench/search_quality.py --seeds 10 --trials 20 --jobs 2
    python scripts/bench/search_quality.py --seeds 10 --trials 30 --tpe --figure docs/img/search_quality.png
    python scripts/bench/search_quality.py --space choices --tpe --gp

A trial trains scikit-learn's handwritten digits with a small MLP, in this process and without a run folder, on the same
split and with the same seed of the weights each time, so that both methods search the same landscape. The drawing of
values is the package's own (`cvtrain.sweep.sampling`), with the space of SPACE below; the metric is the lowest
validation loss over the epochs, which tells trials apart that classify equally many images.
"""

import argparse
import concurrent.futures
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from torch import nn

from cvtrain.config.schema.sweep import Sampler
from cvtrain.sweep.sampling import build_sampler, sample_values
from cvtrain.sweep.spec import load_spec

SPACE: dict[str, Any] = {
    "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1.0},
    "optimizer.weight_decay": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1.0},
    "model.hidden": {"distribution": "q_log_uniform_values", "min": 8, "max": 256, "q": 8},
    "model.dropout": {"min": 0.0, "max": 0.9},
    "loss.label_smoothing": {"min": 0.0, "max": 0.5},
    "data.batch_size": {"values": [16, 32, 64, 128, 256]},
    "model.activation": {"values": ["relu", "tanh", "sigmoid"]},
}
# The same with nothing but lists of values.
CHOICES: dict[str, Any] = {
    "optimizer.lr": {"values": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
    "optimizer.weight_decay": {"values": [1e-5, 1e-3, 1e-2, 1e-1, 1.0]},
    "model.hidden": {"values": [8, 16, 32, 64, 128, 256]},
    "model.dropout": {"values": [0.0, 0.2, 0.4, 0.6, 0.8]},
    "loss.label_smoothing": {"values": [0.0, 0.1, 0.3, 0.5]},
    "data.batch_size": {"values": [16, 32, 64, 128, 256]},
    "model.activation": {"values": ["relu", "tanh", "sigmoid"]},
}
SPACES = {"numbers": SPACE, "choices": CHOICES}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
EPOCHS = 6


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.data[order]).float() / 16
    labels = torch.from_numpy(data.target[order])
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def train(values: dict[str, Any], data: tuple[torch.Tensor, ...]) -> float:
    """The lowest validation loss of a short training."""
    images, labels, val_images, val_labels = data
    torch.manual_seed(0)
    width = int(values["model.hidden"])
    model = nn.Sequential(
        nn.Linear(64, width),
        ACTIVATIONS[values["model.activation"]](),
        nn.Dropout(values["model.dropout"]),
        nn.Linear(width, 10),
    )
    rate, decay = values["optimizer.lr"], values["optimizer.weight_decay"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    criterion = nn.CrossEntropyLoss(label_smoothing=values["loss.label_smoothing"])
    best = float("inf")
    for _ in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images)).split(int(values["data.batch_size"])):
            optimizer.zero_grad()
            criterion(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(val_images), val_labels).item()
        best = min(best, loss) if loss == loss else best
    return min(best, 100.0)


def search(task: tuple[str, str, int, int, str, int]) -> list[float]:
    """Best so far after each trial of one search, in the order in which trials end.

    With several workers, a trial is drawn while the ones before it still run, as the engine does.
    """
    method, sampler, seed, num_trials, space, workers = task
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"search_quality_{os.getpid()}.yaml"
    content = {"method": method, "metric": {"name": "val/loss", "goal": "minimize"}, "parameters": SPACES[space]}
    path.write_text(yaml.safe_dump(content))
    spec = load_spec(path)
    path.unlink()
    study = optuna.create_study(direction="minimize", sampler=build_sampler(spec, Sampler(sampler), seed))
    data = digits()
    best: list[float] = []
    running: list[tuple[optuna.Trial, dict[str, Any]]] = []
    for number in range(num_trials + workers - 1):
        if number < num_trials:
            trial = study.ask()
            running.append((trial, sample_values(trial, spec)))
        if len(running) == workers or number >= num_trials:
            trial, values = running.pop(0)
            loss = train(values, data)
            study.tell(trial, loss)
            best.append(min(loss, best[-1] if best else loss))
    return best


def draw_figure(curves: dict[str, np.ndarray], path: Path) -> None:
    from cvtrain.report.figure import INK, RATE_COLOR, TRAIN_COLOR, VAL_COLOR, new_figure, save_figure, style

    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure = new_figure(6.4, 3.6)
        axes = figure.add_subplot()
        for (name, runs), color in zip(curves.items(), (TRAIN_COLOR, VAL_COLOR, RATE_COLOR, INK), strict=False):
            trials = np.arange(1, runs.shape[1] + 1)
            low, middle, high = np.quantile(runs, [0.25, 0.5, 0.75], axis=0)
            axes.fill_between(trials, low, high, color=color, alpha=0.18, lw=0)
            axes.plot(trials, middle, color=color, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("trials")
        axes.set_ylabel("lowest val/loss so far")
        axes.set_title(f"Median and quartiles of {len(next(iter(curves.values())))} searches")
        axes.grid(True, which="both")
        axes.legend()
        save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--tpe", action="store_true", help="TPE beside what sampler=auto takes")
    parser.add_argument("--gp", action="store_true", help="the Gaussian process beside it")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time")
    parser.add_argument("--space", choices=list(SPACES), default="numbers")
    parser.add_argument("--figure", type=Path, help="where to save the curves")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ways = {"random": ("random", "auto"), "bayes (auto)": ("bayes", "auto")}
    if arguments.tpe:
        ways["bayes (TPE)"] = ("bayes", "tpe")
    if arguments.gp:
        ways["bayes (GP)"] = ("bayes", "gp")
    curves = {}
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs) as pool:
        for name, (method, sampler) in ways.items():
            started = time.perf_counter()
            tasks = [
                (method, sampler, seed, arguments.trials, arguments.space, arguments.workers)
                for seed in range(arguments.seeds)
            ]
            curves[name] = np.array(list(pool.map(search, tasks)))
            final = curves[name][:, -1]
            low, high = np.quantile(final, [0.25, 0.75])
            print(
                f"{name:12s} median best val/loss {statistics.median(final):.4f}, quartiles {low:.4f} to {high:.4f}, "
                f"{arguments.seeds} searches of {arguments.trials} trials, {time.perf_counter() - started:.0f} s"
            )
    if arguments.figure:
        draw_figure(curves, arguments.figure)
        print(f"wrote {arguments.figure}")
    print(f"ratio: {np.median(curves['bayes (auto)'][:, -1]) / np.median(curves['random'][:, -1]):.2f}")


if __name__ == "__main__":
    main()
