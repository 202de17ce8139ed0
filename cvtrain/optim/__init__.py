"""Parameter groups, optimizers and learning-rate schedules."""

from cvtrain.optim.build import build_optimizer
from cvtrain.optim.param_groups import format_groups, parameter_groups
from cvtrain.optim.schedule import Schedule, apply_schedule, build_schedule

__all__ = [
    "Schedule",
    "apply_schedule",
    "build_optimizer",
    "build_schedule",
    "format_groups",
    "parameter_groups",
]
