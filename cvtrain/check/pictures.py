"""Pictures that differ from the rest of the set: dark, light, flat, blurred, of an odd size or shape.

Each value is compared with the set's median in units of its spread, 1.4826 times the median absolute deviation, which
is the standard deviation of a normal distribution. So a set of X-rays is not dark, and an all-black image in it is not
hidden by others. A bound on the value itself keeps a uniform set from having outliers at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cvtrain.check.findings import Finding
from cvtrain.check.measure import CheckedImages, Measurements

# A median of fewer images says little.
MIN_IMAGES = 20
MIN_DEVIATIONS = 3.5
# Grey values of an image that is dark, light, or flat whatever the rest is like.
DARK, LIGHT, FLAT = 40.0, 215.0, 8.0
# Times less sharp, times larger or smaller in area, and times longer than the median.
BLURRED, SIZE, ASPECT = 2.5, 6.0, 2.0


@dataclass(frozen=True)
class _Rule:
    """`values` (N,) deviate in the direction of `sign`, or in both if it is 0; `allowed` (N,) may be outliers."""

    check: str
    values: np.ndarray
    sign: int
    allowed: np.ndarray
    words: str
    shown: np.ndarray


def picture_findings(images: CheckedImages, measured: Measurements) -> Iterator[Finding]:
    """Yield the outliers of each kind. The score is the deviation from the median, in units of the set's spread."""
    rows = np.flatnonzero(measured.readable)
    if len(rows) < MIN_IMAGES:
        return
    for rule in _rules(measured, rows):
        deviations = robust_deviations(rule.values)
        scores = np.abs(deviations) if rule.sign == 0 else rule.sign * deviations
        for place in np.flatnonzero((scores >= MIN_DEVIATIONS) & rule.allowed).tolist():
            detail = f"{rule.words} {rule.shown[place]:.3g}, the median is {np.median(rule.shown):.3g}"
            yield Finding(rule.check, detail, int(rows[place]), score=float(scores[place]))


def _rules(measured: Measurements, rows: np.ndarray) -> Iterator[_Rule]:
    means, contrasts = measured.means[rows], measured.contrasts[rows]
    flat = contrasts < FLAT
    yield _Rule("dark", means, -1, (means < DARK) & ~flat, "mean grey value", means)
    yield _Rule("light", means, 1, (means > LIGHT) & ~flat, "mean grey value", means)
    yield _Rule("low_information", np.log(contrasts + 1), -1, flat, "standard deviation of grey values", contrasts)
    sharpness = measured.sharpness[rows]
    is_soft = sharpness < np.median(sharpness) / BLURRED
    yield _Rule("blurred", np.log(sharpness + 1e-3), -1, is_soft & ~flat, "sharpness", sharpness)
    heights, widths = measured.heights[rows].astype(float), measured.widths[rows].astype(float)
    sizes, aspects = np.log(heights * widths), np.abs(np.log(widths / heights))
    is_odd = np.abs(sizes - np.median(sizes)) > np.log(SIZE)
    yield _Rule("odd_size", sizes, 0, is_odd, "megapixels", heights * widths / 1e6)
    is_odd = aspects - np.median(aspects) > np.log(ASPECT)
    yield _Rule("odd_aspect", aspects, 1, is_odd, "long over short side", np.exp(aspects))


def robust_deviations(values: np.ndarray) -> np.ndarray:
    """(N,) deviations from the median over 1.4826 times the median absolute deviation, or 0.02 if that is less."""
    from_median = values - np.median(values)
    return from_median / max(1.4826 * float(np.median(np.abs(from_median))), 0.02)
