"""What a process measured while it trained: the loop's stages, the data's, and those of the epochs after the first."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from cvtrain.data.loader.batch import Batch
from cvtrain.runtime.stage_clock import StageClock, Times


class LoopTimes:
    """Collects the times of a training loop in this process."""

    def __init__(self, device: torch.device) -> None:
        self.clock = StageClock(device)
        self._data: dict[str, float] = {}
        self._data_cpu: dict[str, float] = {}
        self._num_epochs = 0
        self._first_epoch: Times | None = None

    def start(self) -> None:
        """The loop begins here."""
        self.clock.start()

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what making them took is added up."""
        for batch in batches:
            for sums, counted in ((self._data, batch.seconds),):
                for name, seconds in counted.items():
                    sums[name] = sums.get(name, 0.0) + seconds
            yield batch

    def end_epoch(self) -> None:
        """An epoch has ended, its evaluation and checkpoint included."""
        self._num_epochs += 1
        if self._first_epoch is None:
            self._first_epoch = self.read()

    def read(self) -> Times:
        """All so far. Waits for the device."""
        return Times(
            loop=self.clock.seconds(),
            data=dict(self._data),
            data_cpu=dict(self._data_cpu),
            loop_cpu=self.clock.cpu_seconds(),
            num_epochs=self._num_epochs,
        )

    def steady(self) -> Times:
        """Of the epochs after the first, in which caches fill and libraries choose their kernels; else of all."""
        times = self.read()
        if self._first_epoch is None or times.num_epochs < 2:
            return replace(times, num_epochs=max(1, times.num_epochs))
        return times.since(self._first_epoch)
