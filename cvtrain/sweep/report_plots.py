"""Pictures of a search: its history, its trials as lines through their parameters, and their importance.

Each has the name of the search in its title.
"""

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
    """A trial in a picture. `value` is None for one that failed."""

    number: int
    value: float | None
    is_pruned: bool
    values: Mapping[str, Any]


def plot_history(points: Sequence[Point], metric: Metric, path: str | os.PathLike[str], *, title: str) -> None:
    """Plot the metric of each trial over its number, and the best so far.

    Values far below (or above) the others become triangles at the edge, so that they do not squeeze the rest.
    """
    from matplotlib.ticker import MaxNLocator

    scored = [point for point in points if point.value is not None]
    with style():
        figure = new_figure(7.2, 3.8)
        axes = figure.add_subplot()
        axes.set_title(_with_name(title, f"{metric.name} of {number_of_trials(len(points))}"))
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{printable_text(metric.name)} ({'higher' if metric.maximize else 'lower'} is better)")
        axes.grid(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low, high = robust_limits([point.value for point in scored if point.value is not None], metric)
        axes.set_ylim(low, high)
        for pruned, color, label in ((False, TRAIN_COLOR, "done"), (True, PRUNED_COLOR, "pruned")):
            _scatter(axes, [point for point in scored if point.is_pruned is pruned], color, label, low, high)
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
        if (
            point.value is not None
            and not point.is_pruned
            and (best is None or (point.value > best) == metric.maximize)
        ):
            best = point.value
        if best is not None:
            numbers.append(point.number)
            values.append(best)
    if numbers:
        axes.plot(numbers, values, drawstyle="steps-post", color=VAL_COLOR, lw=1.8, label="best so far", zorder=2)


def robust_limits(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """Return limits of an axis that show all good values, and the bad ones that are not far off."""
    if not values:
        return 0.0, 1.0
    low, high = robust_range(values, metric)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - pad, high + pad


def robust_range(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """Return the range from the best value to the worst that is not far off the others."""
    low, high = min(values), max(values)
    quarter, middle, three = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 3.0 * max(three - quarter, abs(middle) * 1e-3)
    if metric.maximize:
        low = max(low, float(quarter) - reach)
    else:
        high = min(high, float(three) + reach)
    return low, high


def plot_parallel(
    points: Sequence[Point],
    parameters: Sequence[Parameter],
    metric: Metric,
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Plot each trial as a line through its parameters and its metric, coloured by the metric; the best is black."""
    from matplotlib.colors import ListedColormap, Normalize

    scored = in_drawing_order(points, metric)
    shown = [item for item in parameters if len({format_value(point.values.get(item.key)) for point in scored}) > 1]
    columns = [Column.of(item, [point.values.get(item.key) for point in scored]) for item in shown]
    values_scored = [point.value for point in scored if point.value is not None]
    low, high = robust_range(values_scored, metric)
    is_cut = (min(values_scored) < low, max(values_scored) > high)
    columns.append(Column(metric.name, low, high, False, (), is_cut))
    shades = visible_shades()
    colors = ListedColormap(shades if metric.maximize else shades[::-1])
    norm = Normalize(low - (low == high and metric.maximize), high + (low == high and not metric.maximize))
    with style():
        figure = new_figure(max(5.0, 1.75 * len(columns) + 1.2), 4.4)
        axes = figure.add_subplot()
        for rank, point in enumerate(scored):
            values = [*(point.values.get(item.key) for item in shown), point.value]
            heights = [column.height(value) for column, value in zip(columns, values, strict=True)]
            is_best = rank == len(scored) - 1 and not point.is_pruned
            color = INK if is_best else colors(norm(point.value or 0.0))
            line = "--" if point.is_pruned else "-"
            width = 2.2 if is_best else 1.2
            axes.plot(range(len(columns)), heights, line, color=color, lw=width, zorder=2 + rank / len(scored))
        for position, column in enumerate(columns):
            _draw_column(axes, position, column)
        axes.set_xlim(-0.35, len(columns) - 1 + 0.45)
        axes.set_ylim(-0.04, 1.1)
        axes.axis("off")
        pruned = ", pruned ones are dashed" if any(point.is_pruned for point in scored) else ""
        text = f"{number_of_trials(len(scored))}; the greener the better, the best is black{pruned}"
        axes.set_title(_with_name(title, text), pad=10)
        save_figure(figure, path)


def visible_shades() -> np.ndarray:
    """Return 256 colours from blue to green, each with a contrast of 3 or more against white; (256, 4) in 0 to 1.

    They are the dark part of viridis, whose bright part is hard to see as a thin line on white.
    """
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0.0, 0.6, 256)))


def _with_name(title: str, text: str) -> str:
    return f"{printable_text(title, 60)}\n{printable_text(text)}"


def in_drawing_order(points: Sequence[Point], metric: Metric) -> list[Point]:
    """Return the trials that have a value from the worst to the best.

    The last is the best of the search: the earliest of equals among those that were not pruned, if there are any.
    """
    sign = 1.0 if metric.maximize else -1.0
    scored = [point for point in points if point.value is not None]
    scored.sort(key=lambda point: (sign * (point.value or 0.0), -point.number))
    whole = [point for point in scored if not point.is_pruned]
    return [*(point for point in scored if point is not whole[-1]), whole[-1]] if whole else scored


def number_of_trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


@dataclass(frozen=True)
class Column:
    """An upright axis of the parallel plot.

    `names`: for choices, else empty. `is_cut`: whether values beyond its lower and its upper end lie at that end.
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
        """Return the position of a value on the axis, 0 to 1."""
        if self.names:
            return self.names.index(format_value(value)) / self.high
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, (float(value) - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and their labels."""
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


def _draw_column(axes: "Axes", position: int, column: Column) -> None:
    axes.plot([position, position], [0, 1], color="#666666", lw=1.0, zorder=4)
    axes.text(position, 1.05, printable_text(column.title, 26), ha="center", va="bottom", fontsize=8, weight="bold")
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for height, text in column.ticks():
        axes.plot([position - 0.02, position + 0.02], [height, height], color="#666666", lw=0.8, zorder=4)
        axes.text(position + 0.04, height, text, ha="left", va="center", fontsize=7, bbox=box, zorder=5)


def plot_importance(
    importances: Mapping[str, float], metric: Metric, path: str | os.PathLike[str], *, title: str
) -> None:
    """Plot a bar per parameter: its share of the metric's variance over the trials."""
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
        axes.set_title(_with_name(title, f"What {metric.name} depends on (fANOVA)"))
        axes.set_xlabel("share of the variance")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        save_figure(figure, path)
