"""The last output inside a network that still has places: a map, or a sequence of tokens."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

# Class tokens, distillation tokens and registers that may come before the tokens of the image.
MAX_PREFIX = 16
# Their outputs are parts of an attention (queries, keys, weights) more often than maps of features.
_NO_MAPS = (nn.Linear, nn.Softmax, nn.Dropout)


class Layout(str, Enum):
    """Order of the dimensions of an output with places."""

    channels_first = "(B, C, G, G)"
    channels_last = "(B, G, G, C)"
    tokens = "(B, N, C)"


@dataclass(frozen=True)
class SpatialMap:
    """One call of a submodule whose output has a place for each part of the image.

    Attributes:
        name: of the submodule, as `get_submodule` takes it.
        call: which of its calls in a pass, from 0; networks may call one ReLU many times.
        layout: order of the dimensions.
        grid: places per side.
        prefix: tokens before those of the image.
    """

    name: str
    call: int
    layout: Layout
    grid: int
    prefix: int = 0

    def to_channels_first(self, output: torch.Tensor) -> torch.Tensor:
        """Return (B, C, G, G) of the output, or of its gradient, without the prefix."""
        if self.layout is Layout.channels_first:
            return output
        if self.layout is Layout.channels_last:
            return output.permute(0, 3, 1, 2)
        images = output[:, self.prefix :]  # (B, G * G, C)
        return images.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def find_spatial_map(module: nn.Module, images: torch.Tensor) -> SpatialMap | None:
    """Return the last spatial map that the class scores depend on; None: no submodule gives one.

    The maps of a network for square images are square: outputs (1, C, G, G) or (1, G, G, C) with 1 < G <= S and
    G != C, or tokens (1, N, C) with N = G * G and at most 16 more in front. Where the scores take nothing from the last
    of them, as behind the last attention of a vision transformer with a class token, an earlier one is taken: the last
    of the same form, else the last of all, whose gradient is not zero everywhere. Needs neither names nor settings of
    networks.

    Args:
        module: in eval mode; left as it was.
        images: (1, C, S, S) normalised.
    """
    found: list[tuple[SpatialMap, torch.Tensor]] = []
    with frozen(module), torch.enable_grad():
        with _calls(module, lambda name, call, output: _keep(found, name, call, output, images)):
            logits = module(images.detach().clone().requires_grad_())
        kept = [(place, output) for place, output in found if output.requires_grad]
        if not kept or not logits.requires_grad:
            return None
        gradients = torch.autograd.grad(logits.amax(1).sum(), [output for _, output in kept], allow_unused=True)
    shape = kept[-1][1].shape
    used = [
        (place, output.shape == shape)
        for (place, output), gradient in zip(kept, gradients, strict=True)
        if gradient is not None and bool(place.to_channels_first(gradient).any())
    ]
    same = [place for place, is_same in used if is_same]
    candidates = same or [place for place, _ in used]
    return candidates[-1] if candidates else None


def read_map(
    module: nn.Module, images: torch.Tensor, targets: torch.Tensor, place: SpatialMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the map at `place` and its gradient of the target's logit, each (B, C, G, G) float32.

    Args:
        images: (B, C, S, S) normalised.
        targets: (B,) int64 class ids.
    """
    leaves: list[torch.Tensor] = []

    def cut(name: str, call: int, output: Any) -> torch.Tensor | None:
        if (name, call) != (place.name, place.call):
            return None
        # What comes before needs no gradient, and what comes after may work in place.
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    with frozen(module), torch.enable_grad(), _calls(module, cut, only=place.name):
        logits = module(images)
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), leaves)
    return place.to_channels_first(leaves[0].detach()).float(), place.to_channels_first(gradient).float()


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient within; after it each is as it was."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _calls(module: nn.Module, report: Callable[[str, int, Any], Any], *, only: str | None = None) -> Iterator[None]:
    """Give each output of a submodule to `report(name, call, output)`; a tensor that it returns takes its place."""
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable[..., Any]:
        def reported(layer: nn.Module, inputs: Any, output: Any) -> Any:
            call = counts[name] = counts.get(name, -1) + 1
            return report(name, call, output)

        return reported

    handles = [
        layer.register_forward_hook(hook(name))
        for name, layer in module.named_modules()
        if not isinstance(layer, _NO_MAPS) and name and only in (None, name)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(
    found: list[tuple[SpatialMap, torch.Tensor]], name: str, call: int, output: Any, images: torch.Tensor
) -> None:
    form = _form_of(output, images) if isinstance(output, torch.Tensor) else None
    if form is not None:
        found.append((SpatialMap(name, call, *form), output))


def _form_of(output: torch.Tensor, images: torch.Tensor) -> tuple[Layout, int, int] | None:
    """Layout, places per side and tokens before them; None: it has no places."""
    shape, size = output.shape, images.shape[-1]
    if shape[:1] != images.shape[:1] or not output.is_floating_point():
        return None
    if len(shape) == 4 and shape[2] == shape[3] and 1 < shape[2] <= size:
        return Layout.channels_first, shape[2], 0
    if len(shape) == 4 and shape[1] == shape[2] and 1 < shape[1] <= size:
        return Layout.channels_last, shape[1], 0
    if len(shape) == 3:
        grid = math.isqrt(shape[1])
        prefix = shape[1] - grid**2
        if 1 < grid <= size and prefix <= MAX_PREFIX:
            return Layout.tokens, grid, prefix
    return None
