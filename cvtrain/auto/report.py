"""What `cvtrain auto` writes: the table of candidates, the command that repeats the best, and a picture."""

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

from cvtrain.auto.probe import Probed
from cvtrain.auto.state import State, Trained
from cvtrain.config.redact import redact
from cvtrain.config.text import escape_formula
from cvtrain.metrics import wilson_interval
from cvtrain.report.figure import TRAIN_COLOR, VAL_COLOR, new_figure, printable_text, save_figure, style
from cvtrain.runtime.files import atomic_write

COLUMNS = (
    *("kind", "name", "accuracy", "low", "high", "images", "seconds", "ms_per_image", "latency_ms", "params_m"),
    *("license", "verdict"),
)
COMMAND, TABLE, PICTURE = "auto_command.txt", "auto.csv", "auto.png"


def describe_probes(probes: Sequence[Probed]) -> list[str]:
    """Return a table of candidates for the log, the best first."""
    lines = [f"{'backbone':<28} {'images':>7}  {'accuracy (95 %)':<22} {'ms/image':>8} {'M params':>8}  licence"]
    for probed in sorted(probes, key=lambda each: -(each.accuracy or 0.0)):
        shown = "too few images"
        if probed.accuracy is not None:
            low, high = wilson_interval(probed.accuracy * probed.num_images, probed.num_images)
            shown = f"{probed.accuracy:.4f} ({low:.3f}-{high:.3f})"
        lines.append(
            f"{probed.arch:<28} {probed.num_images:>7}  {shown:<22} {1000 * probed.seconds_per_image:>8.1f} "
            f"{probed.params_m:>8.1f}  {probed.license or 'not known'}"
        )
    return lines


def write_results(folder: Path, state: State, best: str) -> None:
    """Write the table, the command and the picture of a search into its folder."""
    winner = next((run for run in state.runs if run.folder == best), None)
    tokens = [token for token in (winner.overrides if winner else ()) if not token.startswith("trainer.max_minutes=")]
    command = shlex.join(["cvtrain", *redact([*state.tokens, *tokens])])
    with atomic_write(folder / COMMAND) as file:
        file.write(f"{command}\n")
    rows: list[dict[str, object]] = []
    for probed in state.probed.values():
        rows.append(
            {
                "kind": "backbone",
                "name": probed.arch,
                **_interval(probed.accuracy, probed.num_images),
                "seconds": f"{probed.seconds:.1f}",
                "ms_per_image": f"{1000 * probed.seconds_per_image:.2f}",
                "latency_ms": f"{probed.latency_ms:.2f}",
                "params_m": f"{probed.params_m:.2f}",
                "license": probed.license,
            }
        )
    for run in state.runs:
        figures = _interval(run.accuracy, run.num_val)
        rows.append(
            {"kind": "run", "name": run.folder, **figures, "seconds": f"{run.seconds:.1f}", "verdict": run.verdict}
        )
    rows += [{"kind": "left out", "name": arch, "verdict": reason} for arch, reason in state.left_out.items()]
    with atomic_write(folder / TABLE) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: escape_formula(str(value)) for name, value in row.items()} for row in rows)
    plot_search(list(state.probed.values()), state.runs, best, folder / PICTURE)


def _interval(accuracy: float | None, number: int) -> dict[str, object]:
    if accuracy is None or number == 0:
        return {"images": number}
    low, high = wilson_interval(accuracy * number, number)
    return {"accuracy": f"{accuracy:.6f}", "low": f"{low:.6f}", "high": f"{high:.6f}", "images": number}


def plot_search(probed: Sequence[Probed], runs: Sequence[Trained], best: str, path: Path) -> None:
    """Plot accuracy against seconds: regressions on part of the features, and runs, with 95 % intervals."""
    with style():
        figure = new_figure(8.5, 4.6)
        axes = figure.add_subplot()
        looked = [(each.seconds, each.accuracy, each.num_images, each.arch) for each in probed if each.accuracy]
        trained = [(run.seconds, run.accuracy, run.num_val, run.folder) for run in runs]
        for points, color, label in (
            (looked, TRAIN_COLOR, "regression on features, cross-validated on train"),
            (trained, VAL_COLOR, "trained, on val"),
        ):
            if not points:
                continue
            intervals = [wilson_interval(accuracy * number, number) for _, accuracy, number, _ in points]
            errors = [
                [accuracy - low for (_, accuracy, _, _), (low, _) in zip(points, intervals, strict=True)],
                [high - accuracy for (_, accuracy, _, _), (_, high) in zip(points, intervals, strict=True)],
            ]
            seconds, values = [point[0] for point in points], [point[1] for point in points]
            axes.errorbar(seconds, values, yerr=errors, fmt="o", color=color, label=label, capsize=3, linewidth=1)
            for second, value, _, name in points:
                text = printable_text(name, 40) + (" (kept)" if name == best else "")
                axes.annotate(text, (second, value), xytext=(6, 4), textcoords="offset points", size=8, color=color)
        axes.set_xlabel("seconds since the start")
        axes.set_ylabel("accuracy, with its 95 % interval")
        # Room for the last name on its right.
        axes.set_xlim(0, 1.4 * max([second for second, *_ in [*looked, *trained]], default=1.0))
        axes.grid(True)
        axes.set_title(f"cvtrain auto: what was found, and when (kept: {printable_text(best, 50)})")
        if looked or trained:
            axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2, fontsize=8)
        save_figure(figure, path)
