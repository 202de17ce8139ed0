"""`Monitor`: the best value of one metric, and how many evaluations had none."""

from cvtrain.config.schema.trainer import TrainerConfig


class Monitor:
    """The best value of one metric, and for how many evaluations none was better."""

    def __init__(self, *, name: str, mode: str, min_delta: float = 0.0) -> None:
        assert mode in ("max", "min")
        self.name = name
        self.mode = mode
        self.min_delta = min_delta
        self.metric = name.removeprefix("val/")
        self.best: float | None = None
        self.best_step: int | None = None
        self.num_bad_evals = 0

    def observe(self, value: float, step: int, *, is_counted: bool = True) -> bool:
        """Return True if `value` is better than the best so far by more than min_delta. NaN never is.

        `is_counted=False` leaves `num_bad_evals` as it is where the value is not better.
        """
        if self.best is None:
            better = value == value
        else:
            gain = value - self.best if self.mode == "max" else self.best - value
            better = gain > self.min_delta
        if better:
            self.best, self.best_step, self.num_bad_evals = value, step, 0
        else:
            self.num_bad_evals += is_counted
        return better

    def state_dict(self) -> dict[str, float | int | None]:
        return {"best": self.best, "best_step": self.best_step, "num_bad_evals": self.num_bad_evals}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        self.best = state["best"]
        self.best_step = state["best_step"]  # type: ignore[assignment]
        self.num_bad_evals = state["num_bad_evals"]  # type: ignore[assignment]


def build_monitor(config: TrainerConfig) -> Monitor:
    """Return the monitor of `trainer.monitor`."""
    mode = monitor_mode(config.monitor, config.monitor_mode.value)
    return Monitor(name=config.monitor, mode=mode, min_delta=config.early_stop_min_delta)


def monitor_mode(name: str, mode: str) -> str:
    """Return `max` or `min`: `auto` is min for losses and errors, max for the rest."""
    if mode != "auto":
        return mode
    return "min" if name.endswith(("loss", "error")) else "max"
