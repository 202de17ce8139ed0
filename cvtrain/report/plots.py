"""Pictures of a run: curves and the confusion matrix. Each function writes one PNG, atomically."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvtrain.metrics import count_confusions
from cvtrain.report.figure import (
    INK,
    MISSING,
    RATE_COLOR,
    TRAIN_COLOR,
    VAL_COLOR,
    new_figure,
    place_square,
    printable_text,
    save_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Above this a confusion matrix has no room for numbers or for every name.
MAX_CLASSES_WITH_TEXT = 40
# Above this a matrix has no room for a class, and a dense one takes memory: only the worst pairs are drawn.
MAX_CLASSES_IN_MATRIX = 200
WORST_PAIRS = 40

Row = Mapping[str, Any]


def plot_curves(
    rows: Sequence[Row], path: str | os.PathLike[str], *, title: str = "", best_step: int | None = None
) -> None:
    """Plot loss, accuracy and learning rate over the epochs; panels without a point are left out.

    Training is drawn faint as logged and strong as the mean of each epoch. Without a whole epoch the x axis is steps.

    Args:
        rows: rows of metrics.jsonl (`loggers.read_metrics`); values that are null leave a gap.
        path: the PNG.
        title: name of the run.
        best_step: step of best.pt, which is marked; None: there is none.
    """
    from matplotlib.ticker import MaxNLocator

    panels = [
        (heading, name)
        for heading, name in (("Loss", "loss"), ("Accuracy", "accuracy"), ("Learning rate", "lr"))
        if any(len(series_of(rows, f"{split}{name}")[0]) for split in ("train/", "train/epoch_", "val/"))
    ]
    ends = epoch_ends(rows)
    points = [{**row, "step": epochs_at(row["step"], ends)} for row in rows]
    best = None if best_step is None else epochs_at(best_step, ends)
    with style():
        figure = new_figure(4.4 * max(1, len(panels)), 3.5 + 0.3 * bool(title))
        for position, (heading, name) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), position)
            axes.set_title(heading)
            axes.set_xlabel("epoch" if ends else "step")
            axes.grid(True)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
            axes.set_xlim(0, 1.04 * max(point["step"] for point in points) or 1)
            if name == "lr":
                _draw_rate(axes, points)
            else:
                _draw_metric(axes, points, name, best)
        if title:
            figure.suptitle(printable_text(title, 90), x=0.01, ha="left", size=10)
        if not panels:
            figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color="#777777")
        save_figure(figure, path)


def plot_confusion(
    labels: ArrayLike, preds: ArrayLike, classes: Sequence[str], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Plot the confusion matrix, or above 200 classes the pairs that are confused most often.

    Numbers are counts, colours the share of the true class, so that rare classes show as well. Up to 40 classes every
    cell has its count and every class its name; above, colours only, with some of the names. A class without an image
    has a grey row.

    Args:
        labels: (N,) true class ids.
        preds: (N,) predicted class ids.
        classes: names of the K classes.
        path: the PNG, about 16 x 15 inches at most.
        title: name of the run.
    """
    true, predicted, counts = count_confusions(np.asarray(labels, np.int64), np.asarray(preds, np.int64))
    correct, total = int(counts[true == predicted].sum()), int(counts.sum())
    accuracy = f"accuracy {correct / total:.4f} ({correct:,} of {total:,})" if total else "no images"
    heading = f"{printable_text(title, 60)}\n{accuracy}" if title else accuracy
    if len(classes) > MAX_CLASSES_IN_MATRIX:
        support = np.bincount(np.asarray(labels, np.int64), minlength=len(classes))
        _plot_worst_pairs(true, predicted, counts, support, classes, heading, path)
        return
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    matrix[true, predicted] = counts
    _plot_matrix(matrix, classes, heading, path)


def _plot_matrix(counts: NDArray[np.int64], classes: Sequence[str], heading: str, path: str | os.PathLike[str]) -> None:
    num_classes = len(classes)
    from matplotlib.colors import PowerNorm

    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    cell_inches = min(0.5, 12.5 / num_classes)
    side = max(2.4, cell_inches * num_classes)
    with style():
        import matplotlib

        figure = new_figure(side + 4, side + 4)
        axes = figure.add_axes((0.4, 0.4, 0.1, 0.1))
        colors = matplotlib.colormaps["Blues"].with_extremes(bad=MISSING)
        # A power below 1 lifts the few mistakes of a large matrix out of the white.
        norm = PowerNorm(0.4 if num_classes > MAX_CLASSES_WITH_TEXT else 1.0, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=colors, norm=norm, interpolation="nearest")
        axes.set_title(heading, loc="center", pad=9)
        axes.set_xlabel("predicted", labelpad=6)
        axes.set_ylabel("true", labelpad=6)
        axes.spines[:].set_visible(False)
        _name_ticks(axes, classes, side / num_classes)
        if num_classes <= MAX_CLASSES_WITH_TEXT:
            _write_counts(axes, counts, shares, side / num_classes)
        place_square(figure, axes, image, side=side, bar_label="share of the true class")
        save_figure(figure, path)


def _plot_worst_pairs(
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    counts: NDArray[np.int64],
    support: NDArray[np.int64],
    classes: Sequence[str],
    heading: str,
    path: str | os.PathLike[str],
) -> None:
    """Plot a bar per pair of classes: the most frequent mistakes, of equal ones those of the smaller class."""
    wrong = np.flatnonzero(true != predicted)
    worst = wrong[np.lexsort((support[true[wrong]], -counts[wrong]))][:WORST_PAIRS]
    names = [
        f"{printable_text(classes[true[pair]], 28)} → {printable_text(classes[predicted[pair]], 28)}" for pair in worst
    ]
    with style():
        figure = new_figure(9, 1.4 + 0.22 * max(1, len(worst)))
        axes = figure.add_subplot()
        axes.barh(range(len(worst)), counts[worst], color=VAL_COLOR, height=0.7)
        for position, pair in enumerate(worst):
            share = f"  {counts[pair]:,} of {support[true[pair]]:,}"
            axes.text(counts[pair], position, share, va="center", size=8)
        axes.set_yticks(range(len(worst)), names, size=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(f"{heading}\n{len(worst)} most frequent of {len(wrong):,} confused pairs (true → predicted)")
        axes.set_xlabel("images")
        axes.locator_params(axis="x", integer=True)
        save_figure(figure, path)


def series_of(rows: Sequence[Row], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the rows that have `name`, both (N,); null is NaN."""
    points = [(row["step"], np.nan if row[name] is None else row[name]) for row in rows if name in row]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)


def epoch_ends(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return (step, epochs done) from 0 to the last whole epoch; empty without one.

    A limit may have cut the last epoch short; images that cannot be read may make any epoch shorter.
    """
    ends = {row["epoch"]: row["step"] for row in rows if "train/epoch_loss" in row}
    longest = max((step / epoch for epoch, step in ends.items()), default=0)
    if longest == 0:
        return []
    points = [(0.0, 0.0)]
    for epoch, step in sorted(ends.items()):
        length = step - points[-1][0]
        is_cut = epoch == max(ends) and epoch > 1 and length < 0.999 * longest
        points.append((step, points[-1][1] + length / longest if is_cut else float(epoch)))
    return points


def epochs_at(step: float, ends: Sequence[tuple[float, float]]) -> float:
    """Return how many epochs were done at `step`; the step itself if no epoch has ended."""
    if not ends:
        return step
    steps, epochs = zip(*ends, strict=True)
    beyond = max(0.0, step - steps[-1]) * epochs[-1] / steps[-1]
    return float(np.interp(step, steps, epochs)) + beyond


def _draw_metric(axes: "Axes", rows: Sequence[Row], name: str, best: float | None) -> None:
    steps, values = series_of(rows, f"train/{name}")
    epoch_steps, epoch_values = series_of(rows, f"train/epoch_{name}")
    if len(epoch_steps):
        axes.plot(steps, values, color=TRAIN_COLOR, alpha=0.3, linewidth=1.0)
        _draw_line(axes, epoch_steps, epoch_values, TRAIN_COLOR, "train, mean of epoch")
    else:
        _draw_line(axes, steps, values, TRAIN_COLOR, "train")
    val_steps, val_values = series_of(rows, f"val/{name}")
    _draw_line(axes, val_steps, val_values, VAL_COLOR, "val")
    if best is not None:
        _mark_best(axes, best, val_steps, val_values)
    drawn = np.concatenate([values, epoch_values, val_values])
    drawn = drawn[np.isfinite(drawn)]
    if name == "loss" and len(drawn) and drawn.min() > 0 and drawn.max() / drawn.min() > 30:
        axes.set_yscale("log")
    axes.margins(y=0.14)
    # The search for the emptiest corner looks at every point.
    corner: Any = "upper right" if name == "loss" else "lower right"
    if len(drawn) < 5000:
        corner = "best"
    axes.legend(loc=corner, fontsize=8)


def _draw_line(
    axes: "Axes", steps: NDArray[np.float64], values: NDArray[np.float64], color: str, label: str | None = None
) -> None:
    if len(steps):
        # Dots tell where points are; too many are a band.
        axes.plot(steps, values, color=color, label=label, marker="o" if len(steps) <= 30 else None, markersize=3.5)


def _mark_best(axes: "Axes", best: float, steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Mark the evaluation whose weights best.pt holds."""
    axes.axvline(best, color=VAL_COLOR, linewidth=0.8, linestyle=":")
    at = np.flatnonzero(np.isclose(steps, best) & np.isfinite(values))
    if not len(at):
        return
    place = (steps[at[-1]], values[at[-1]])
    # Named in the legend, which keeps clear of the curves.
    axes.plot(
        *place,
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgewidth=1.4,
        linestyle="none",
        color=VAL_COLOR,
        label=f"best.pt {place[1]:.4g}",
    )


def _draw_rate(axes: "Axes", rows: Sequence[Row]) -> None:
    _draw_line(axes, *series_of(rows, "train/lr"), RATE_COLOR)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _name_ticks(axes: "Axes", classes: Sequence[str], cell_inches: float) -> None:
    num_classes = len(classes)
    # A name needs about 0.16 inch across its line.
    fitting = 1 if num_classes <= MAX_CLASSES_WITH_TEXT else 0.2 / cell_inches
    stride = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, num_classes) if step >= fitting)
    positions = list(range(0, num_classes, stride))
    names = [printable_text(classes[position], 24) for position in positions]
    longest = max(len(name) for name in names)
    upright = longest * 0.075 < cell_inches
    axes.set_xticks(positions, names, rotation=0 if upright else 90 if num_classes > 12 else 45)
    if not upright:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("center" if num_classes > 12 else "right")
            label.set_rotation_mode("default" if num_classes > 12 else "anchor")
    axes.set_yticks(positions, names)
    size = 9 if num_classes <= 20 else 8 if num_classes <= MAX_CLASSES_WITH_TEXT else 7
    axes.tick_params(length=0 if num_classes <= MAX_CLASSES_WITH_TEXT else 2, labelsize=size)


def _write_counts(axes: "Axes", counts: NDArray[Any], shares: NDArray[np.float64], cell_inches: float) -> None:
    digits = len(str(counts.max(initial=0)))
    # A digit is about 0.64 em wide.
    size = min(9.0, cell_inches * 72 * 0.88 / (max(digits, 2) * 0.64))
    for true, predicted in np.ndindex(counts.shape):
        count = counts[true, predicted]
        if count == 0:
            continue
        dark = shares[true, predicted] > 0.55
        axes.text(predicted, true, str(count), ha="center", va="center", size=size, color="white" if dark else INK)
