"""Seconds of the training loop by stage, on the clock of the device."""

import time
from dataclasses import dataclass, field

import torch

# In the order of the loop. `wait`: for the next batch; `transfer`: for its copy to the device, as far as that does not
# run beside the computation; `prepare`: augmentation and normalisation on the device;
# `logging`: reading the sums and writing them; `checkpoint`: the copy, the file is written beside the training.
LOOP_STAGES = (
    "wait",
    "transfer",
    "prepare",
    "forward_backward",
    "optimizer",
    "evaluation",
    "logging",
    "checkpoint",
    "other",
)


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        loop: by stage of `stage_clock`, in the main process.
        data: by stage of `data.stage_times`, over all processes that made training batches; they may overlap.
        data_cpu: of `data`, seconds in which a core was at work.
        loop_cpu: core seconds of the main process, all threads, by stage of `stage_clock`; none of a CUDA device.
        num_epochs: epochs' ends within.
    """

    loop: dict[str, float] = field(default_factory=dict)
    data: dict[str, float] = field(default_factory=dict)
    data_cpu: dict[str, float] = field(default_factory=dict)
    loop_cpu: dict[str, float] = field(default_factory=dict)
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
            loop=_less(self.loop, earlier.loop),
            data=_less(self.data, earlier.data),
            data_cpu=_less(self.data_cpu, earlier.data_cpu),
            loop_cpu=_less(self.loop_cpu, earlier.loop_cpu),
            num_epochs=self.num_epochs - earlier.num_epochs,
        )


def _less(seconds: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    return {name: value - earlier.get(name, 0.0) for name, value in seconds.items()}


class StageClock:
    """Laps: each `lap` gives the time since the one before to a stage, so that the stages add up to all of it.

    On a CUDA device the laps are between events on its stream, which cost microseconds and no synchronisation: the time
    of a stage is that of the device, and `wait` the time in which it had nothing to do. They are read by `settle`.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        self._since = time.perf_counter()
        self._cpu_since = time.process_time()
        self._last_event: torch.cuda.Event | None = None
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin here: what was before belongs to no stage."""
        self._since, self._cpu_since = time.perf_counter(), time.process_time()
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
        # In this order, since a process that asks for its core seconds may lose the core: the stage used it up.
        cpu_now = time.process_time()
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._cpu_seconds[stage] = self._cpu_seconds.get(stage, 0.0) + cpu_now - self._cpu_since
        self._since, self._cpu_since = now, cpu_now

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

    def cpu_seconds(self) -> dict[str, float]:
        """Core seconds of this process by stage, all threads; none on a CUDA device, which works beside the host."""
        return dict(self._cpu_seconds)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
