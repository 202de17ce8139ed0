"""Exponential moving average (EMA) of a model's weights."""

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ModelEma:
    """A second copy of the model whose weights follow the first: ema = d * ema + (1 - d) * weights.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that the EMA forgets the random start of a short run (the
    form that TensorFlow's ExponentialMovingAverage has with `num_updates`).
    Buffers, such as batch-norm statistics, are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the EMA towards the weights of `model`, once after each optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = zip(self.model.parameters(), model.parameters(), strict=True)
        # What is frozen is its own EMA.
        moving = [(ema, parameter.detach()) for ema, parameter in parameters if parameter.requires_grad]
        # torch's own average: one launch on a GPU for all parameters.
        get_ema_multi_avg_fn(decay)([ema for ema, _ in moving], [parameter for _, parameter in moving], None)
        for ema_buffer, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            ema_buffer.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.model.load_state_dict(state["model"])


class NoEma:
    """Stands in for `ModelEma` when it is off: `model` is the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def update(self, model: nn.Module) -> None:
        """Do nothing."""

    def state_dict(self) -> None:
        return None

    def load_state_dict(self, state: None) -> None:
        """Do nothing."""


def build_ema(model: nn.Module, decay: float | None) -> ModelEma | NoEma:
    """Return the EMA of `model` with this decay in (0, 1); None: the model itself."""
    return NoEma(model) if decay is None else ModelEma(model, decay)
