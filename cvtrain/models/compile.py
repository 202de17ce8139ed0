"""`CompiledModel`: torch.compile around a forward pass, for batches of the usual size."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from cvtrain.config.text import first_line

log = logging.getLogger(__name__)

# Names in the config, and torch's own.
MODES = {"default": "default", "reduce_overhead": "reduce-overhead", "max_autotune": "max-autotune"}


class CompiledModel:
    """A forward pass through `model`, compiled when it is first called. The weights are the model's own.

    Compiled code is for one shape. A batch of another size, such as the last one of an epoch, goes through the model as
    it is, which takes no longer than once; else each size would be compiled, for a minute each. Where nothing can be
    compiled, all batches do, after one warning.

    Args:
        model: the network.
        mode: `default`; `reduce_overhead`, which on CUDA replays each step as one graph, for small networks whose
            kernels take less time than their launch; or `max_autotune`, which also tries kernels out.
        micro_batches: tells the usual number of images of a forward pass, and how many passes make a step. Both change
            when memory does not suffice.
    """

    def __init__(
        self, model: Callable[[torch.Tensor], Any], *, mode: str, micro_batches: Callable[[], tuple[int, int]]
    ) -> None:
        self.model = model
        self.mode = mode
        self.micro_batches = micro_batches
        self.is_off = False
        self._compiled: Callable[[torch.Tensor], Any] | None = None
        self._size: int | None = None

    def __call__(self, images: torch.Tensor) -> Any:
        """What `model` gives for (B, ...) images."""
        size, passes = self.micro_batches()
        if self.is_off or len(images) != size:
            return self.model(images)
        if self.mode == "reduce_overhead" and passes > 1:
            # The graph of the second pass would write over gradients that the first has left.
            self._turn_off("trainer.compile_mode=reduce_overhead takes whole batches, and they are split by now")
            return self.model(images)
        if self._size != size:
            return self._first_call(images, size)
        assert self._compiled is not None
        self._begin_step()
        return self._compiled(images)

    def _first_call(self, images: torch.Tensor, size: int) -> Any:
        log.info("trainer.compile: compiling for batches of %d images; this step takes longer", size)
        started = time.perf_counter()
        try:
            self._compiled = torch.compile(self.model, mode=MODES[self.mode], dynamic=False)
            self._begin_step()
            outputs = self._compiled(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a compiler, or a model that it cannot read, may raise has no common type
            self._turn_off(f"{type(error).__name__}: {first_line(error)}")
            return self.model(images)
        self._size = size
        log.info("trainer.compile: compiled in %.0f s", time.perf_counter() - started)
        return outputs

    def _begin_step(self) -> None:
        if self.mode == "reduce_overhead":
            # What the step before has left in the graph's memory may be written over from here on.
            torch.compiler.cudagraph_mark_step_begin()

    def _turn_off(self, reason: str) -> None:
        self.is_off = True
        self._compiled = None
        log.warning("trainer.compile: going on without: %s", reason)
