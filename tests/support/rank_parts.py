"""A network without dropout and batch norm for runs of several processes, and ways for one of them to go wrong."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    """FAIL_AT=STEP:RANK:HOW does something at one training step of one rank, once if FAIL_MARK names a file.

    HOW: raise, memory, kill, or the name of a signal; `slow` makes each step from there on take 0.1 s.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, num_classes))
        self.layers(torch.zeros(1, channels, 8, 8))
        self.num_steps = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._misbehave()
            self.num_steps += 1
        return self.layers(images)

    def _misbehave(self) -> None:
        step, _, rest = os.environ.get("FAIL_AT", "").partition(":")
        rank, _, how = rest.partition(":")
        if not step or os.environ.get("RANK") != rank:
            return
        if how == "slow" and self.num_steps >= int(step):
            time.sleep(0.1)
            return
        mark = Path(os.environ["FAIL_MARK"]) if "FAIL_MARK" in os.environ else None
        if self.num_steps != int(step) or (mark and mark.exists()):
            return
        if mark:
            mark.touch()
        if how == "memory":
            raise torch.OutOfMemoryError("not enough for this test")
        if how == "raise":
            raise ValueError(f"rank {rank} fails at step {step}")
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else getattr(signal, how))
