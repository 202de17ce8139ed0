"""Pictures of a search: its history, its trials as lines through their parameters, and which parameter matters."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cvtrain.config.errors import format_value
from cvtrain.report.figure import INK, TRAIN_COLOR, VAL_COLOR, new_figure, printable_text, save_figure, style
from cvtrain.sweep.parameters import Parameter
from cvtrain.sweep.spec import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILED_COLOR, PRUNED_COLOR = "#CC3311", "#AAAAAA"
# More choices than this have no room for a name each.
MAX_NAMES = 14


@dataclass(frozen=True)
class Point:
    """A trial as it is drawn. `value` is None for one that failed."""

    number: int
    value: float | None
    pruned: bool
    values: Mapping[str, Any]


def plot_history(points: Sequence[Point], metric: Metric, path: str | os.PathLike[str]) -> None:
    """The metric of each trial over its number, and the best so far.

    Values far below (or above) the others are drawn as triangles at the edge, so that they do not squeeze the rest.
    """
    from matplotlib.ticker import MaxNLocator

    told = [point for point in points if point.value is not None]
    with style():
        figure = new_figure(7.2, 3.8)
        axes = figure.add_subplot()
        axes.set_title(f"{printable_text(metric.name)} of {number_of_trials(len(points))}")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{printable_text(metric.name)} ({'higher' if metric.maximize else 'lower'} is better)")
        axes.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low, high = robust_limits([point.value for point in told if point.value is not None], metric)
        axes.set_ylim(low, high)
        for pruned, color, label in ((False, TRAIN_COLOR, "done"), (True, PRUNED_COLOR, "pruned")):
            _scatter(axes, [point for point in told if point.pruned is pruned], color, label, low, high)
        failed = [point.number for point in points if point.value is None]
        if failed:
            axes.plot(
                failed,
                [0.02] * len(failed),
                "x",
                color=FAILED_COLOR,
                label="failed",
                transform=axes.get_xaxis_transform(),
            )
        _draw_best(axes, points, metric)
        axes.legend(loc="lower right" if metric.maximize else "upper right")
        save_figure(figure, path)


def _scatter(axes: "Axes", points: Sequence[Point], color: str, label: str, low: float, high: float) -> None:
    inside = [point for point in points if point.value is not None and low <= point.value <= high]
    outside = [point for point in points if point.value is not None and not low <= point.value <= high]
    if inside or outside:
        values = [point.value or 0.0 for point in inside]
        axes.plot([p.number for p in inside], values, "o", ms=5, color=color, label=label, zorder=3)
    for point in outside:
        below = point.value is not None and point.value < low
        edge, marker = (low + 0.02 * (high - low), "v") if below else (high - 0.02 * (high - low), "^")
        axes.plot([point.number], [edge], marker, ms=6, color=color, zorder=3)


def _draw_best(axes: "Axes", points: Sequence[Point], metric: Metric) -> None:
    best, numbers, values = None, [], []
    for point in points:
        if point.value is not None and not point.pruned and (best is None or (point.value > best) == metric.maximize):
            best = point.value
        if best is not None:
            numbers.append(point.number)
            values.append(best)
    if numbers:
        axes.plot(numbers, values, drawstyle="steps-post", color=VAL_COLOR, lw=1.8, label="best so far", zorder=2)


def robust_limits(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """Limits of an axis that show the good end in full, and of the bad end what is not far off."""
    if not values:
        return 0.0, 1.0
    low, high = robust_range(values, metric)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - pad, high + pad


def robust_range(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """From the best value to the worst that is not far off the others."""
    low, high = min(values), max(values)
    quarter, middle, three = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 3.0 * max(three - quarter, abs(middle) * 1e-3)
    if metric.maximize:
        low = max(low, float(quarter) - reach)
    else:
        high = min(high, float(three) + reach)
    return low, high


def plot_parallel(
    points: Sequence[Point], parameters: Sequence[Parameter], metric: Metric, path: str | os.PathLike[str]
) -> None:
    """Each trial as a line through its parameters and its metric, coloured by the metric; the best one is black."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    told = in_drawing_order(points, metric)
    shown = [item for item in parameters if len({format_value(point.values.get(item.key)) for point in told}) > 1]
    columns = [Column.of(item, [point.values.get(item.key) for point in told]) for item in shown]
    values_told = [point.value for point in told if point.value is not None]
    low, high = robust_range(values_told, metric)
    is_cut = (min(values_told) < low, max(values_told) > high)
    columns.append(Column(metric.name, low, high, False, (), is_cut))
    # Without the yellow end, which cannot be seen on white.
    shades = colormaps["viridis"](np.linspace(0.0, 0.8, 256))
    colors = ListedColormap(shades if metric.maximize else shades[::-1])
    norm = Normalize(low - (low == high and metric.maximize), high + (low == high and not metric.maximize))
    with style():
        figure = new_figure(max(5.0, 1.75 * len(columns) + 1.2), 4.4)
        axes = figure.add_subplot()
        for rank, point in enumerate(told):
            values = [*(point.values.get(item.key) for item in shown), point.value]
            heights = [column.height(value) for column, value in zip(columns, values, strict=True)]
            is_best = rank == len(told) - 1 and not point.pruned
            color = INK if is_best else colors(norm(point.value or 0.0))
            width, alpha = (2.2, 1.0) if is_best else (1.2, 0.35 if point.pruned else 0.75)
            axes.plot(range(len(columns)), heights, color=color, lw=width, alpha=alpha, zorder=2 + rank / len(told))
        for position, column in enumerate(columns):
            _draw_column(axes, position, column, is_last=position == len(columns) - 1)
        axes.set_xlim(-0.35, len(columns) - 1 + 0.45)
        axes.set_ylim(-0.04, 1.1)
        axes.axis("off")
        pruned = ", pruned ones are pale" if any(point.pruned for point in told) else ""
        title = f"{number_of_trials(len(told))}; the greener the better, the best is black{pruned}"
        axes.set_title(title, pad=10)
        save_figure(figure, path)


def in_drawing_order(points: Sequence[Point], metric: Metric) -> list[Point]:
    """Trials with a value from the worst to the best; the last is that which the search calls its best.

    That is the earliest of the best among those that came to their end, if any did.
    """
    sign = 1.0 if metric.maximize else -1.0
    told = [point for point in points if point.value is not None]
    told.sort(key=lambda point: (sign * (point.value or 0.0), -point.number))
    whole = [point for point in told if not point.pruned]
    return [*(point for point in told if point is not whole[-1]), whole[-1]] if whole else told


def number_of_trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


@dataclass(frozen=True)
class Column:
    """An upright axis of the parallel plot.

    `names`: for choices, else empty. `is_cut`: whether values beyond its lower and its upper end are drawn at them.
    """

    title: str
    low: float
    high: float
    log: bool
    names: tuple[str, ...]
    is_cut: tuple[bool, bool] = (False, False)

    @staticmethod
    def of(parameter: Parameter, values: Sequence[Any]) -> "Column":
        is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if parameter.choices or not is_number:
            order = parameter.choices or parameter.grid() or values
            names = tuple(dict.fromkeys(format_value(value) for value in order))
            return Column(parameter.key, 0.0, max(1.0, len(names) - 1.0), False, names)
        log = "log" in parameter.distribution and min(values) > 0
        return Column(parameter.key, float(min(values)), float(max(values)), log, ())

    def height(self, value: Any) -> float:
        """Where a value is on the axis, 0 to 1."""
        if self.names:
            return self.names.index(format_value(value)) / self.high
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, (float(value) - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and their labels."""
        if self.names:
            every = math.ceil(len(self.names) / MAX_NAMES)
            return [(n / self.high, printable_text(name, 18)) for n, name in enumerate(self.names) if n % every == 0]
        if self.low == self.high:
            return [(0.5, f"{self.low:.4g}")]
        shares = [0.0, 0.25, 0.5, 0.75, 1.0]
        if self.log:
            return [(share, f"{self.low * (self.high / self.low) ** share:.3g}") for share in shares]
        texts = [f"{self.low + (self.high - self.low) * share:.4g}" for share in shares]
        texts[0] = f"\u2264 {texts[0]}" if self.is_cut[0] else texts[0]
        texts[-1] = f"\u2265 {texts[-1]}" if self.is_cut[1] else texts[-1]
        return list(zip(shares, texts, strict=True))


def _draw_column(axes: "Axes", position: int, column: Column, *, is_last: bool) -> None:
    axes.plot([position, position], [0, 1], color="#666666", lw=1.0, zorder=4)
    axes.text(position, 1.05, printable_text(column.title, 26), ha="center", va="bottom", fontsize=8, weight="bold")
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for height, text in column.ticks():
        axes.plot([position - 0.02, position + 0.02], [height, height], color="#666666", lw=0.8, zorder=4)
        axes.text(position + 0.04, height, text, ha="left", va="center", fontsize=7, bbox=box, zorder=5)


def plot_importance(importances: Mapping[str, float], metric: Metric, path: str | os.PathLike[str]) -> None:
    """A bar per parameter: its share of what makes the metric differ from trial to trial."""
    names = sorted(importances, key=lambda name: importances[name])
    with style():
        figure = new_figure(6.4, 0.9 + 0.34 * len(names))
        axes = figure.add_subplot()
        axes.barh(
            [printable_text(name, 40) for name in names], [importances[name] for name in names], color=TRAIN_COLOR
        )
        for position, name in enumerate(names):
            axes.text(importances[name] + 0.01, position, f"{importances[name]:.2f}", va="center", fontsize=8)
        axes.set_xlim(0, min(1.0, 1.12 * max(importances.values()) + 0.05) + 0.03)
        axes.set_title(f"What {printable_text(metric.name)} depends on (fANOVA)")
        axes.set_xlabel("share of the variance")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        save_figure(figure, path)
