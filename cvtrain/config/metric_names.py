"""The figures that a run logs: what a sweep, a monitor or a plot may ask for."""

from cvtrain.config.checks.training import MONITORS
from cvtrain.config.errors import Problem
from cvtrain.config.suggestions import closest, did_you_mean

TRAINING = (
    "train/loss",
    "train/accuracy",
    "train/epoch_loss",
    "train/epoch_accuracy",
    "train/lr",
    "perf/images_per_second",
    "perf/data_wait_share",
)
# Entries of summary.json, which are logged at the end.
AT_THE_END = ("best.value", *(f"best.metrics.{name}" for name in MONITORS), *(f"last.{name}" for name in MONITORS))
LOGGED = (*MONITORS, *TRAINING, *AT_THE_END)


def metric_problem(key: str, name: object) -> Problem | None:
    """What is wrong with a metric that a search is to follow; None: every run logs it."""
    if name in LOGGED:
        return None
    text = str(name)
    names = closest(text, LOGGED) or [known for known in MONITORS if known.partition("/")[2] == text]
    listed = "\n".join((f"metrics: {', '.join(MONITORS)}", f"and while training: {', '.join(TRAINING)}"))
    return Problem(key, name, "no run logs this metric", "\n".join(filter(None, [did_you_mean(names), listed])))
