"""Factors on the peak learning rate as pure functions of the step.

`step` counts updates from 0; `num_steps` is the number of updates, so the last is `num_steps - 1`, and there a decay
reaches its `end_factor`. torch's schedulers, stepped after each update, count the same way; but their `T_max` and
`total_iters` are numbers of intervals: with `num_steps` there the end would be reached only after the last update.
"""

import math
from bisect import bisect_right


def constant(step: int) -> float:
    """1 at every step."""
    return 1.0


def step_decay(step: int, *, period_steps: int, gamma: float, first_step: int = 0) -> float:
    """gamma ** floor((first_step + step) / period_steps), as torch's StepLR."""
    return gamma ** ((first_step + step) // period_steps)


def multistep(step: int, *, milestones: tuple[int, ...], gamma: float, first_step: int = 0) -> float:
    """gamma ** (number of `milestones`, rising, that are not above first_step + step), as torch's MultiStepLR."""
    return gamma ** bisect_right(milestones, first_step + step)


def exponential(step: int, *, steps_per_epoch: int, gamma: float) -> float:
    """gamma ** (step / steps_per_epoch): torch's ExponentialLR per epoch, drawn out smoothly over its steps."""
    return gamma ** (step / steps_per_epoch)


def polynomial(step: int, *, num_steps: int, power: float, end_factor: float) -> float:
    """end + (1 - end) (1 - p) ** power, p = step / (num_steps - 1): torch's PolynomialLR with a floor.

    `power=1` is linear, torch's LinearLR from 1 to `end_factor`.
    """
    return end_factor + (1 - end_factor) * (1 - _progress(step, num_steps)) ** power


def cosine(step: int, *, num_steps: int, end_factor: float) -> float:
    """end + (1 - end) (1 + cos(pi p)) / 2, p = step / (num_steps - 1) (Loshchilov and Hutter 2017, SGDR eq. 5)."""
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * _progress(step, num_steps))) / 2


def onecycle(step: int, *, num_steps: int, pct_start: float, div_factor: float, final_div_factor: float) -> float:
    """Smith and Topin 2018 in torch's two-phase cosine form: 1/div up to 1, down to 1/(div * final_div).

    The peak is at step pct_start * num_steps - 1, which may lie between two steps; in a run so short that this is not
    above 0, the run starts at the peak. The rate alone is cycled, not the momentum.
    """
    first, last = 1 / div_factor, 1 / (div_factor * final_div_factor)
    peak = max(0.0, pct_start * num_steps - 1)
    if step < peak:
        return 1 + (first - 1) * (1 + math.cos(math.pi * step / peak)) / 2
    share = min(1.0, (step - peak) / max(1.0, num_steps - 1 - peak))
    return last + (1 - last) * (1 + math.cos(math.pi * share)) / 2


def _progress(step: int, num_steps: int) -> float:
    """0 at the first of `num_steps`, 1 at the last and after it."""
    return min(1.0, step / max(1, num_steps - 1))
