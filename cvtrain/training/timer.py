"""Seconds of the training loop by stage, on the clock of the device, and those of making batches."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from cvtrain.data.loader.batch import Batch

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
class StageTimes:
    """Seconds.

    Attributes:
        loop: by stage of `LOOP_STAGES`, in the main process.
        data: by stage of `data.loader.timing`, over all processes that made training batches; they may overlap.
        num_epochs: epochs' ends within.
    """

    loop: dict[str, float] = field(default_factory=dict)
    data: dict[str, float] = field(default_factory=dict)
    num_epochs: int = 0

    @property
    def total(self) -> float:
        return sum(self.loop.values())

    @property
    def training(self) -> float:
        """Seconds of the loop outside of evaluation."""
        return self.total - self.loop.get("evaluation", 0.0)

    def since(self, earlier: "StageTimes") -> "StageTimes":
        """Return what came after `earlier`."""
        return StageTimes(
            loop=_less(self.loop, earlier.loop),
            data=_less(self.data, earlier.data),
            num_epochs=self.num_epochs - earlier.num_epochs,
        )


def _less(seconds: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    return {name: value - earlier.get(name, 0.0) for name, value in seconds.items()}


class StageTimer:
    """Each `mark` gives the time since the one before to a stage, so that the stages add up to all of the loop.

    On a CUDA device the marks are events on its stream, which cost microseconds and no synchronisation: the time of a
    stage is that of the device, and `wait` the time in which it had nothing to do. `flush` reads them.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._loop: dict[str, float] = {}
        self._data: dict[str, float] = {}
        self._num_epochs = 0
        self._first_epoch: StageTimes | None = None
        self._since = time.perf_counter()
        self._last_event: torch.cuda.Event | None = None
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin here: what was before belongs to no stage."""
        self._since = time.perf_counter()
        if self._is_cuda:
            self._last_event = self._event()

    def mark(self, stage: str) -> None:
        """Count the time since the last mark for `stage`."""
        if self._is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return  # part of a graph: its replay counts as one
            event = self._event()
            if self._last_event is not None:
                self._pending.append((stage, self._last_event, event))
            self._last_event = event
            return
        now = time.perf_counter()
        self._loop[stage] = self._loop.get(stage, 0.0) + now - self._since
        self._since = now

    def flush(self) -> None:
        """Read the marks that the device has passed; call it where the host waits for the device anyway."""
        while self._pending and self._pending[0][2].query():
            stage, begin, end = self._pending.pop(0)
            self._loop[stage] = self._loop.get(stage, 0.0) + begin.elapsed_time(end) / 1000

    def count_batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the same batches, and add up what making them took."""
        for batch in batches:
            for name, seconds in batch.seconds.items():
                self._data[name] = self._data.get(name, 0.0) + seconds
            yield batch

    def end_epoch(self) -> None:
        """Note the end of an epoch, its evaluation and checkpoint included."""
        self._num_epochs += 1
        if self._first_epoch is None:
            self._first_epoch = self.read()

    def read(self) -> StageTimes:
        """Return all times so far. Waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
            self.flush()
        return StageTimes(
            loop=dict(self._loop),
            data=dict(self._data),
            num_epochs=self._num_epochs,
        )

    def after_first_epoch(self) -> StageTimes:
        """Return the times after the first epoch, in which caches fill and kernels are chosen; of one epoch, all."""
        times = self.read()
        if self._first_epoch is None or times.num_epochs < 2:
            return replace(times, num_epochs=max(1, times.num_epochs))
        return times.since(self._first_epoch)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
