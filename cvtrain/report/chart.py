"""Small charts as inline SVG: text stays text, and colours follow the page's light or dark theme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cvtrain.runtime.html_page import text

# Of `chart`, for the page's <style>: the classes below are the colours of series. Okabe and Ito's (2008), lighter on
# dark pages.
STYLE = """
:root { --a: #0072B2; --b: #C24E00; --c: #007F5F; }
@media (prefers-color-scheme: dark) { :root { --a: #56B4E9; --b: #F0A060; --c: #4FD1A5; } }
svg { max-width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
svg .axis { stroke: var(--line); fill: none; }
svg .a, svg .b, svg .c { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .a { stroke: var(--a); } svg .b { stroke: var(--b); } svg .c { stroke: var(--c); }
svg .faint { opacity: .35; stroke-width: 1; }
svg circle.a, svg rect.a { fill: var(--a); } svg circle.b, svg rect.b { fill: var(--b); }
svg circle.c { fill: var(--c); }
"""
_WIDTH, _HEIGHT = 380, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 20, 26, 36
# Points of a line that are drawn; of more, the means of equal parts.
_MAX_POINTS = 200
# Values of a loss that differ by more than this factor get a logarithmic axis.
_LOG_FACTOR = 30


@dataclass(frozen=True)
class Series:
    """One line, or row of points.

    Attributes:
        name: for the legend; empty: not in it.
        x, y: of the points; NaN leaves a gap.
        color: a, b or c; `a faint` is thin and pale.
        low, high: ends of the interval of each point; with them, points are drawn and no line.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str = "a"
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what is measured.
        limits: both ends; None: those of the points.
        is_share: values are fractions, shown as percentages.
        may_be_log: logarithmic where positive values differ by more than 30 times.
    """

    label: str
    limits: tuple[float, float] | None = None
    is_share: bool = False
    may_be_log: bool = False


def chart(title: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series], *, diagonal: bool = False) -> str:
    """Return an `svg` element of 380 x 250 units, with title, ticks and legend.

    Args:
        title: in words, for readers who do not see it, too.
        diagonal: draw the line on which x equals y.
    """
    x_scale = _Scale(x_axis, [each.x for each in series], (_LEFT, _WIDTH - _RIGHT))
    y_values = [values for each in series for values in (each.y, each.low, each.high) if len(values)]
    y_scale = _Scale(y_axis, y_values, (_HEIGHT - _BOTTOM, _TOP))
    lines = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img">']
    lines.append(f"<title>{text(title)}</title>")
    for value, place in y_scale.ticks():
        lines.append(f'<path class="axis" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value}</text>')
    for value, place in x_scale.ticks():
        lines.append(f'<path class="axis" d="M{place:.1f} {_HEIGHT - _BOTTOM}v4"/>')
        lines.append(f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value}</text>')
    lines.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{text(x_axis.label)}</text>')
    lines.append(f'<text x="2" y="12">{text(y_axis.label)}</text>')
    if diagonal:
        ends = [(x_scale.place(value), y_scale.place(value)) for value in x_scale.limits]
        lines.append(f'<path class="axis" d="{_path(ends)}"/>')
    lines += [line for each in series for line in _draw(each, x_scale, y_scale)]
    place = float(_WIDTH - _RIGHT)
    for each in reversed([each for each in series if each.name]):
        lines.append(f'<text x="{place:.0f}" y="12" text-anchor="end">{text(each.name)}</text>')
        place -= 6.2 * len(each.name) + 10
        lines.append(f'<circle class="{each.color}" cx="{place + 4:.0f}" cy="8" r="3.5"/>')
        place -= 12
    return "\n".join([*lines, "</svg>"])


def bar(share: float) -> str:
    """Return an `svg` element with a bar of `share`, in 0..1, of its width; the number stands beside it as text."""
    return (
        '<svg viewBox="0 0 100 8" width="100" height="8" aria-hidden="true">'
        f'<rect class="a" width="{100 * min(1.0, max(0.0, share)):.1f}" height="8"/></svg>'
    )


class _Scale:
    """From values to places on the chart."""

    def __init__(self, axis: Axis, values: Sequence[Sequence[float] | np.ndarray], places: tuple[float, float]) -> None:
        numbers = np.concatenate([np.asarray(part, np.float64) for part in values] or [np.zeros(1)])
        numbers = numbers[np.isfinite(numbers)] if np.isfinite(numbers).any() else np.zeros(1)
        low, high = axis.limits or (float(numbers.min()), float(numbers.max()))
        self.axis = axis
        self.is_log = axis.may_be_log and low > 0 and high / low > _LOG_FACTOR
        if not self.is_log and axis.limits is None:
            margin = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
            low, high = low - margin, high + margin
            if axis.is_share:
                low, high = max(0.0, low), min(1.0, high)
        self.limits = (low, high)
        self.places = places

    def place(self, value: float) -> float:
        low, high = map(math.log, self.limits) if self.is_log else self.limits
        share = ((math.log(value) if self.is_log else value) - low) / (high - low)
        start, end = self.places
        return start + (end - start) * share

    def ticks(self) -> list[tuple[str, float]]:
        """Return labels and places of round numbers within the limits."""
        low, high = self.limits
        if self.is_log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1, 2, 5) if len(powers) < 4 else (1,)
            values = [step * 10.0**power for power in powers for step in steps]
        else:
            rough = (high - low) / 5
            magnitude = 10.0 ** math.floor(math.log10(rough))
            step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
            values = [step * count for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        inside = [value for value in values if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9) + 1e-12]
        return [(self._label(value), self.place(value)) for value in inside]

    def _label(self, value: float) -> str:
        return f"{round(100 * value, 6):g} %" if self.axis.is_share else f"{round(value, 12):g}"


def _draw(series: Series, x_scale: _Scale, y_scale: _Scale) -> list[str]:
    if not len(series.low):
        return [f'<path class="{series.color}" d="{_path(_points(series, x_scale, y_scale))}"/>']
    lines = []
    for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
        place = x_scale.place(x)
        top, bottom = y_scale.place(high), y_scale.place(low)
        lines.append(f'<path class="{series.color}" d="M{place:.1f} {bottom:.1f}V{top:.1f}"/>')
        lines.append(f'<circle class="{series.color}" cx="{place:.1f}" cy="{y_scale.place(y):.1f}" r="3.5"/>')
    return lines


def _points(series: Series, x_scale: _Scale, y_scale: _Scale) -> list[tuple[float, float] | None]:
    """Return the places of a line's points, None where it has a gap."""
    x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
    if len(x) > _MAX_POINTS:
        parts = np.array_split(np.arange(len(x)), _MAX_POINTS)
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
    return [
        (x_scale.place(a), y_scale.place(b)) if math.isfinite(b) else None
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """Return the `d` of a line; a point on its own is a dot."""
    words, is_open = [], False
    for number, point in enumerate(points):
        if point is None:
            is_open = False
            continue
        words.append(f"{'L' if is_open else 'M'}{point[0]:.1f} {point[1]:.1f}")
        if not is_open and (number + 1 == len(points) or points[number + 1] is None):
            words.append("h.1")
        is_open = True
    return "".join(words)
