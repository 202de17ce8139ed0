"""Muon for the weights of hidden layers, AdamW for everything else, as one optimizer."""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cvtrain.config.errors import ConfigError
from cvtrain.optim.param_groups import head_parameters, weight_names

# Quintic coefficients of Jordan et al. 2024: steepest at zero, so that five iterations bring singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def muon_parameters(module: nn.Module, *, head: tuple[str, ...], layers: tuple[tuple[str, ...], ...]) -> set[str]:
    """Names of the weights that Muon trains: matrices and ungrouped convolution filters of hidden layers.

    Left to AdamW, after Jordan et al. 2024: the head; the first entry of `layers` where there are at least three (the
    input layer); biases, norms, embeddings and scales; grouped and depthwise filters, whose flattened matrix is
    block-sparse, so that making it orthogonal has no meaning.

    Raises:
        ConfigError: nothing is left for Muon.
    """
    owners = dict(module.named_modules())
    excluded = head_parameters(module, head) | set(layers[0] if len(layers) > 2 else ())
    names = set()
    for name, parameter in module.named_parameters():
        owner = owners[name.rpartition(".")[0]]
        dense_filter = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and owner.groups == 1
        if parameter.ndim == 2 or dense_filter:
            names.add(name)
    names = (names & weight_names(module)) - excluded
    if not names:
        raise ConfigError(
            key="optimizer",
            value="muon",
            rule="this network has no hidden layer with a weight matrix, which is what Muon trains",
            remedy="use optimizer=adamw",
        )
    return names


def orthogonalize(matrix: Tensor, *, steps: int) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T, by Newton-Schulz iteration in bfloat16.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = matrix / ||matrix||_F. Singular values end between about 0.7
    and 1.2, not at 1, which trains as well (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Args:
        matrix: (rows, columns), any float type.
        steps: number of iterations; 5 is usual.

    Returns:
        (rows, columns) bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.T  # the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024) on some groups and AdamW on the others.

    Muon: m <- momentum m + (1 - momentum) g; u = orthogonalize(m), or of Nesterov's momentum m + (1 - momentum) g;
    w <- (1 - lr wd) w - lr sqrt(max(1, rows / columns)) u. Convolution filters (out, in, h, w) count as matrices
    (out, in * h * w). On matrices it equals `torch.optim.Muon` to the bit; that class (torch >= 2.9) takes no filters.

    All of the state is in `param_groups` and `state`, as in any torch optimizer, so hooks, `GradScaler`, `state_dict`
    and `load_state_dict` work as usual.
    """

    def __init__(
        self,
        muon_groups: list[dict[str, Any]],
        adamw_groups: list[dict[str, Any]],
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        """Args: groups with `lr` and `weight_decay`; the rest as in `torch.optim.Muon` and `torch.optim.AdamW`."""
        adamw = AdamW(adamw_groups, betas=betas, eps=eps, foreach=foreach, fused=fused) if adamw_groups else None
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        groups: list[dict[str, Any]] = [{**group, **muon, "algorithm": "muon"} for group in muon_groups]
        if adamw is not None:
            groups += [{**group, "algorithm": "adamw"} for group in adamw.param_groups]
        super().__init__(groups, {})
        self._adamw = adamw
        self._share_state()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["algorithm"] == "muon":
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._muon_step(parameter, group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()` of an optimizer over the same groups."""
        super().load_state_dict(state_dict)
        self._share_state()

    def _muon_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient, lr = parameter.grad, group["lr"]
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum_buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum_buffer, group["momentum"]) if group["nesterov"] else momentum_buffer
        matrix = update.flatten(1)  # (out, in * h * w); a copy under channels_last
        direction = orthogonalize(matrix, steps=group["ns_steps"]).view_as(parameter)
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(direction, alpha=-lr * math.sqrt(max(1.0, matrix.size(0) / matrix.size(1))))

    def _share_state(self) -> None:
        """Let AdamW work on its groups and states here, so that there is one set of both."""
        if self._adamw is not None:
            groups = [group for group in self.param_groups if group["algorithm"] == "adamw"]
            self._adamw.__setstate__({"state": self.state, "param_groups": groups})
