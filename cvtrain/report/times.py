"""The times of a run as summary.json shows them."""

from typing import Any

from cvtrain.data.loader.timing import STAGES
from cvtrain.report.bottleneck import Bottleneck
from cvtrain.training.timer import LOOP_STAGES, StageTimes


def describe_times(times: StageTimes, finding: Bottleneck, *, num_workers: int) -> dict[str, Any]:
    """Seconds and shares by stage, and the finding. Shares of the loop add up to 1, and so do those of the data."""
    return {
        "loop_seconds": times.total,
        "loop": _shares(times.loop, LOOP_STAGES),
        "data": _shares(times.data, STAGES),
        "data_workers": num_workers,
        "bottleneck": finding.sentence,
        "remedy": finding.remedy,
        "estimated_speedup": finding.speedup,
        "estimates": [f"{remedy}: {speedup:g}" for remedy, speedup in finding.estimates.items()],
    }


def _shares(seconds: dict[str, float], names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    total = sum(seconds.values())
    return {
        name: {"seconds": seconds[name], "share": seconds[name] / total if total else 0.0}
        for name in names
        if name in seconds
    }
