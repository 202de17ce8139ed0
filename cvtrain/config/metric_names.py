"""The figures that a run logs: what a sweep, a monitor or a plot may ask for."""

from cvtrain.config.checks.training import MONITORS
from cvtrain.config.errors import Problem
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.schema.trainer import MonitorMode

SPLIT_METRICS = tuple(name.partition("/")[2] for name in MONITORS)
TRAINING = (
    "train/loss",
    "train/accuracy",
    "train/epoch_loss",
    "train/epoch_accuracy",
    "train/lr",
    "perf/images_per_second",
    "perf/data_wait_share",
)
# Entries of summary.json, which W&B gets too.
SUMMARY_METRICS = ("best.value", *(f"best.metrics.{name}" for name in MONITORS), *(f"last.{name}" for name in MONITORS))
# The test split is scored too, but nothing is chosen by it.
LOGGED = (*MONITORS, *TRAINING, *SUMMARY_METRICS)
# Which way is better, where it is no question of taste.
_BETTER = {name: MONITORS[f"val/{name}"] for name in SPLIT_METRICS} | {
    "epoch_loss": MonitorMode.min,
    "epoch_accuracy": MonitorMode.max,
    "images_per_second": MonitorMode.max,
}


def metric_problem(key: str, name: object) -> Problem | None:
    """Return the problem of a metric that a search optimizes; None: every run logs it."""
    if name in LOGGED:
        return None
    text = str(name)
    if text.startswith("test/"):
        rule = "cannot be used for selection: the best value on the test split would be biased"
        return Problem(key, name, rule, did_you_mean(closest(f"val/{text[5:]}", MONITORS)))
    names = [known for known in MONITORS if known.partition("/")[2] == text] or closest(text, LOGGED)
    listed = "\n".join((f"metrics: {', '.join(MONITORS)}", f"and while training: {', '.join(TRAINING)}"))
    return Problem(key, name, "no run logs this metric", "\n".join(filter(None, [did_you_mean(names), listed])))


def metric_direction(name: object) -> MonitorMode | None:
    """Return whether a metric is better at its min or max; None: that is for the user to say."""
    return _BETTER.get(str(name).partition("/")[2])
