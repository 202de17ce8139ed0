"""Seconds of the training loop by stage, on the clock of the device."""

import time
from dataclasses import dataclass, field

import torch

# In the order of the loop. `wait`: for the next batch; `prepare`: augmentation and normalisation on the device;
# `logging`: reading the sums and writing them; `checkpoint`: the copy, the file is written beside the training.
LOOP_STAGES = ("wait", "prepare", "forward_backward", "optimizer", "evaluation", "logging", "checkpoint", "other")


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        loop: by stage of `stage_clock`, in the main process.
        data: by stage of `data.stage_times`, over all processes that made training batches; they may overlap.
        data_cpu: of `data`, seconds that a core was at work.
        main_cpu: core seconds of the main process, all threads.
        num_epochs: epochs' ends within.
    """

    loop: dict[str, float] = field(default_factory=dict)
    data: dict[str, float] = field(default_factory=dict)
    data_cpu: float = 0.0
    main_cpu: float = 0.0
    num_epochs: int = 0

    @property
    def total(self) -> float:
        return sum(self.loop.values())

    @property
    def training(self) -> float:
        """Seconds of the loop outside of evaluation."""
        return self.total - self.loop.get("evaluation", 0.0)

    def since(self, earlier: "Times") -> "Times":
        """What came after `earlier`."""
        return Times(
            loop={name: seconds - earlier.loop.get(name, 0.0) for name, seconds in self.loop.items()},
            data={name: seconds - earlier.data.get(name, 0.0) for name, seconds in self.data.items()},
            data_cpu=self.data_cpu - earlier.data_cpu,
            main_cpu=self.main_cpu - earlier.main_cpu,
            num_epochs=self.num_epochs - earlier.num_epochs,
        )


class StageClock:
    """Laps: each `lap` gives the time since the one before to a stage, so that the stages add up to all of it.

    On a CUDA device the laps are between events on its stream, which cost microseconds and no synchronisation: the time
    of a stage is that of the device, and `wait` the time in which it had nothing to do. They are read by `settle`.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()
        self._last_event: torch.cuda.Event | None = None
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin here: what was before belongs to no stage."""
        self._since = time.perf_counter()
        if self._is_cuda:
            self._last_event = self._event()

    def lap(self, stage: str) -> None:
        """What was done since the last lap was `stage`."""
        if self._is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return  # part of a graph: its replay counts as one
            event = self._event()
            if self._last_event is not None:
                self._pending.append((stage, self._last_event, event))
            self._last_event = event
            return
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def settle(self) -> None:
        """Read the laps that the device has come to; call it now and then, where the host waits for it anyway."""
        while self._pending and self._pending[0][2].query():
            stage, begin, end = self._pending.pop(0)
            self._seconds[stage] = self._seconds.get(stage, 0.0) + begin.elapsed_time(end) / 1000

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far. Waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
            self.settle()
        return dict(self._seconds)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
