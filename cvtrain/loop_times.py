"""What a process measured while it trained: the loop's stages, the data's, and those of the epochs after the first."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from cvtrain.data.batches import Batch
from cvtrain.stage_clock import StageClock, Times


class LoopTimes:
    """Collects the times of a training loop in this process."""

    def __init__(self, device: torch.device) -> None:
        self.clock = StageClock(device)
        self._data: dict[str, float] = {}
        self._data_cpu = 0.0
        self._num_epochs = 0
        self._first_epoch: Times | None = None
        self._cpu_before = time.process_time()

    def start(self) -> None:
        """The loop begins here."""
        self._cpu_before = time.process_time()
        self.clock.start()

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; what making them took is added up."""
        for batch in batches:
            for name, seconds in batch.seconds.items():
                self._data[name] = self._data.get(name, 0.0) + seconds
            self._data_cpu += batch.cpu_seconds
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
            data_cpu=self._data_cpu,
            main_cpu=time.process_time() - self._cpu_before,
            num_epochs=self._num_epochs,
        )

    def steady(self) -> Times:
        """Of the epochs after the first, in which caches fill and libraries choose their kernels; else of all."""
        times = self.read()
        if self._first_epoch is None or times.num_epochs < 2:
            return replace(times, num_epochs=max(1, times.num_epochs))
        return times.since(self._first_epoch)
