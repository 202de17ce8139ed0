"""Exponential moving average of a model's weights."""

import copy
from typing import Any

import torch
from torch import nn

from cvtrain.distributed.fsdp import WholeWeights, own_part
from cvtrain.distributed.process_group import SINGLE_PROCESS


class ModelEma:
    """A second copy of the model whose weights follow the first: average = d * average + (1 - d) * weights.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that the average does not remember the random
    start of a short run (the form TensorFlow's ExponentialMovingAverage gives with `num_updates`).
    Buffers, such as batch-norm statistics, are copied. Where the weights are spread over processes, so is the average,
    after `weights.spread` of its model.
    """

    def __init__(self, model: nn.Module, decay: float, weights: WholeWeights | None = None) -> None:
        self.decay = decay
        self.weights = weights or WholeWeights(SINGLE_PROCESS)
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model`, once after each optimizer step."""
        self.num_updates += 1
        weight = 1.0 - min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = zip(self.model.parameters(), model.parameters(), strict=True)
        # What is frozen is its own average.
        moving = [
            (own_part(average), own_part(parameter)) for average, parameter in parameters if parameter.requires_grad
        ]
        torch._foreach_lerp_([average for average, _ in moving], [parameter for _, parameter in moving], weight)
        # One launch per type on a GPU, where a small network's many batch norms would cost one for each buffer.
        pairs = list(zip(self.model.buffers(), model.buffers(), strict=True))
        for real in (True, False):
            chosen = [pair for pair in pairs if pair[0].is_floating_point() == real]
            if chosen:
                torch._foreach_copy_([average for average, _ in chosen], [buffer for _, buffer in chosen])

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "model": self.weights.state(self.model)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.weights.load(self.model, state["model"])


class NoEma:
    """What stands in for ModelEma when it is off: the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def update(self, model: nn.Module) -> None:
        """Nothing to do."""

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, state: None) -> None:
        """Nothing to restore."""


def build_ema(model: nn.Module, decay: float | None, weights: WholeWeights | None = None) -> ModelEma | NoEma:
    """The average of `model` with this decay in (0, 1); null: the model itself."""
    return NoEma(model) if decay is None else ModelEma(model, decay, weights)
