"""The report of a search, `sweep_report/`: a table, pictures, a page, the best checkpoint and its command."""

import base64
import csv
import html
import io
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cvtrain.config.errors import format_value
from cvtrain.config.repeats import Repeats
from cvtrain.config.text import escape_formula
from cvtrain.report.repeats import Spread, overlap_of, spread_of
from cvtrain.runtime.console import display_path
from cvtrain.runtime.files import atomic_write
from cvtrain.sweep.display import STATES, best_trial, last_value, short
from cvtrain.sweep.report_plots import Point, plot_history, plot_importance, plot_parallel
from cvtrain.sweep.search import Search
from cvtrain.sweep.study import END, RUN
from cvtrain.sweep.trial import reproducing_command, trial_folder

log = logging.getLogger(__name__)

REPORT = "sweep_report"
# fANOVA fits trees, which say nothing about a handful of trials.
MIN_TRIALS_FOR_IMPORTANCE = 6


def write_report(search: Search, study: optuna.Study, trials: Sequence[FrozenTrial], folder: Path) -> None:
    """Write `folder/sweep_report/`, over that of an earlier start. Pictures that need more trials are left out.

    Args:
        search: the search.
        study: Optuna's study, for the importance of the parameters.
        trials: its trials.
        folder: the folder of the study.
    """
    report = folder / REPORT
    report.mkdir(parents=True, exist_ok=True)
    finished = [trial for trial in trials if trial.state.is_finished()]
    metric = search.spec.metric
    write_table(search, finished, report / "trials.csv")
    points = [point_of(trial) for trial in finished]
    pictures = plot_search(search, study, points, report)
    best = best_trial(list(finished), metric)
    command = "" if best is None else reproducing_command(search, best.user_attrs[RUN]["overrides"])
    if best is not None:
        copy_best(trial_folder(folder, best.number), report)
        with atomic_write(report / "best_command.txt") as file:
            file.write(command + "\n")
    with atomic_write(report / "report.html") as file:
        file.write(page(search, finished, best, command, pictures))
    counts = {state: sum(trial.state is state for trial in finished) for state in STATES}
    ended = ", ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count)
    open_counts = {
        "interrupted": sum(trial.state is TrialState.WAITING for trial in trials),
        "running elsewhere": sum(trial.state is TrialState.RUNNING for trial in trials),
    }
    others = "".join(f"; {count} {name}" for name, count in open_counts.items() if count)
    log.info("%d of %s trials: %s%s", len(finished), search.trials, ended or "none has ended", others)
    if best is not None:
        interval = describe_folds(best.user_attrs.get(END, {}).get("folds", ()))
        log.info("best: trial %d, %s %.4f%s", best.number, metric.name, best.value, interval)
        log.info("its command: %s", command)
    log.info("report in %s", display_path(report / "report.html"))


def point_of(trial: FrozenTrial) -> Point:
    """Return a trial for the pictures; a pruned one with its last value."""
    value = None if trial.state is TrialState.FAIL else trial.value
    value = last_value(trial) if value is None and trial.state is TrialState.PRUNED else value
    value = None if value is not None and not math.isfinite(value) else value
    return Point(trial.number, value, trial.state is TrialState.PRUNED, trial.user_attrs.get(RUN, {}).get("values", {}))


def write_table(search: Search, trials: Sequence[FrozenTrial], path: Path) -> None:
    """Write a row per trial: number, state, value, step of its best, seconds, parameters, folder, message."""
    keys = [parameter.key for parameter in search.spec.parameters]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metric = search.spec.metric.name
    spread = ["std", "low", "high"] if search.folds else []
    writer.writerow(["trial", "state", metric, *spread, "step", "seconds", *keys, "folder", "message"])
    for trial in trials:
        point = point_of(trial)
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        values = [_cell(point.values.get(key, "")) for key in keys]
        value = "" if point.value is None else repr(point.value)
        folder = f"trials/{trial.number:04d}"
        end = trial.user_attrs.get(END, {})
        step, message = end.get("step", ""), end.get("message", "")
        head = [trial.number, STATES[trial.state], value]
        if search.folds:
            found = spread_of_folds(end.get("folds", ()))
            head += ["", "", ""] if found is None else [repr(found.std), repr(found.low), repr(found.high)]
        writer.writerow([*head, step, seconds, *values, folder, escape_formula(message)])
    with atomic_write(path) as file:
        file.write(text.getvalue())


def spread_of_folds(values: Sequence[float]) -> Spread | None:
    """Return mean, deviation and 95 % interval of a trial's folds, as `cvtrain folds=K` has them; None: no folds."""
    return spread_of(values, overlap=overlap_of(Repeats("folds", len(values)))) if len(values) > 1 else None


def describe_folds(values: Sequence[float]) -> str:
    """Return the 95 % interval of a mean over folds in words; empty without folds."""
    found = spread_of_folds(values)
    return "" if found is None else f" (95 % interval {found.low:.4f} to {found.high:.4f} over {found.runs} folds)"


def _cell(value: Any) -> str:
    return escape_formula(value) if isinstance(value, str) else format_value(value)


def plot_search(search: Search, study: optuna.Study, points: Sequence[Point], report: Path) -> list[Path]:
    """Write the pictures that there are enough trials for, and return their paths."""
    metric, title = search.spec.metric, f"search {search.name}"
    done = [point for point in points if point.value is not None]
    for name in ("history", "parallel", "importance"):
        (report / f"{name}.png").unlink(missing_ok=True)
    pictures = []
    if points:
        plot_history(points, metric, report / "history.png", title=title)
        pictures.append(report / "history.png")
    if len(done) > 1:
        plot_parallel(done, search.spec.parameters, metric, report / "parallel.png", title=title)
        pictures.append(report / "parallel.png")
    importances = parameter_importance(study)
    if importances:
        plot_importance(importances, metric, report / "importance.png", title=title)
        pictures.append(report / "importance.png")
    return pictures


def parameter_importance(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share of the variance (fANOVA, Hutter et al. 2014).

    It is empty for too few trials, and where a single parameter varies: all of the variance is its own.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < MIN_TRIALS_FOR_IMPORTANCE or len({trial.value for trial in done}) < 2:
        return {}
    values: dict[str, set[str]] = {}
    for trial in done:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    if sum(len(different) > 1 for different in values.values()) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError) as error:  # such as a single value of every parameter
        log.debug("no importances", exc_info=error)
        return {}
    return {name: float(share) for name, share in found.items()}


def copy_best(run: Path, report: Path) -> None:
    """Copy the best trial's best.pt into the report, if this machine has it."""
    source = run / "checkpoints" / "best.pt"
    if source.exists():
        shutil.copyfile(source, report / ".best.pt.part")
        (report / ".best.pt.part").replace(report / "best.pt")


def page(
    search: Search, trials: Sequence[FrozenTrial], best: FrozenTrial | None, command: str, pictures: Sequence[Path]
) -> str:
    """Return the report as one self-contained HTML file."""
    spec, esc = search.spec, html.escape
    goal = "highest" if spec.metric.maximize else "lowest"
    body = [f"<h1>{esc(search.name)}</h1>"]
    body.append(f"<p>{esc(spec.method)} search over {len(spec.parameters)} parameters; the {goal} "
                f"{esc(spec.metric.name)} counts. {len(trials)} trials have ended.</p>")  # fmt: skip
    if best is not None:
        interval = describe_folds(best.user_attrs.get(END, {}).get("folds", ()))
        body.append(f"<h2>Best: trial {best.number}, {esc(spec.metric.name)} {best.value:.6g}{esc(interval)}</h2>")
        body.append(f"<pre>{esc(command)}</pre>")
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        body.append(f'<img alt="{picture.stem}" src="data:image/png;base64,{data}">')
    body.append(html_table(search, trials, best))
    style = (
        "body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1100px;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse;font-size:13px}td,th{padding:3px 10px;border-bottom:1px solid #ddd;"
        "text-align:right}th{text-align:left}td.t{text-align:left}tr.best{background:#e8f4ea;font-weight:600}"
        "tr.failed{color:#b3261e}tr.pruned{color:#777}img{max-width:100%;display:block;margin:1em 0}"
        "pre{background:#f5f5f5;padding:.8em;white-space:pre-wrap;overflow-wrap:anywhere}"
    )
    title = esc(f"search {search.name}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def html_table(search: Search, trials: Sequence[FrozenTrial], best: FrozenTrial | None) -> str:
    """Return a table of all trials, the best first, failed ones last."""
    esc, metric = html.escape, search.spec.metric

    def order(trial: FrozenTrial) -> tuple[int, float]:
        value = point_of(trial).value
        rank = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL].index(trial.state)
        return rank, 0.0 if value is None else -value if metric.maximize else value

    keys = [parameter.key for parameter in search.spec.parameters]
    head = "".join(f"<th>{esc(text)}</th>" for text in ("trial", "state", metric.name, "seconds", *keys, "message"))
    rows = []
    for trial in sorted(trials, key=order):
        point = point_of(trial)
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        cells: list[Any] = [trial.number, STATES[trial.state], "" if point.value is None else f"{point.value:.4f}"]
        cells += [seconds, *(short(point.values[key]) if key in point.values else "" for key in keys)]
        kind = "best" if best is not None and trial.number == best.number else STATES[trial.state]
        message = esc(str(trial.user_attrs.get(END, {}).get("message", "")).partition("\n")[0])
        row = "".join(f"<td>{esc(str(cell))}</td>" for cell in cells) + f'<td class="t">{message}</td>'
        rows.append(f'<tr class="{kind}">{row}</tr>')
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"
