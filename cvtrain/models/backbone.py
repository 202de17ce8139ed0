"""A network in two parts: the backbone, which turns images into features, and the head, which scores them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from cvtrain.models.dry_run import evaluation_mode
from cvtrain.models.heads import is_inside

# How much of their length an image's features may move because a kernel adds up in another order, in bf16 at that.
_ROUNDING = 0.02


class SplitError(ValueError):
    """Why a network cannot be taken apart at its head, in words that go on from "because"."""


@dataclass(frozen=True)
class FeatureSpec:
    """The features of one image: what the head receives.

    Attributes:
        shape: without the batch.
        dtype: as autocast leaves it.
        memory_format: of a batch, which decides what kernels a convolution in the head takes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_format: torch.memory_format

    @property
    def num_bytes(self) -> int:
        """Bytes per image."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class _HeadReached(Exception):
    """Ends a pass through the network at the head; `inputs` is what the head was given."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = inputs
        super().__init__()


def compute_features(module: nn.Module, head: str, images: torch.Tensor) -> torch.Tensor:
    """What the submodule `head` of `module` receives for `images` (B, C, S, S): (B, ...). The head itself rests."""

    def stop(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise _HeadReached(inputs[0])

    handle = module.get_submodule(head).register_forward_pre_hook(stop)
    try:
        module(images)
    except _HeadReached as reached:
        return reached.inputs
    finally:
        handle.remove()
    raise AssertionError(f"{head} was not called")


@contextlib.contextmanager
def captured_features(module: nn.Module, head: str) -> Iterator[list[torch.Tensor]]:
    """Inside, each pass through `module` adds to the list what its submodule `head` receives: (B, D) float32.

    Places or tokens, (B, D, H, W) or (B, T, D), are averaged.
    """
    captured: list[torch.Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        captured.append(pool_features(inputs[0]))

    handle = module.get_submodule(head).register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def pool_features(features: torch.Tensor) -> torch.Tensor:
    """Return (B, D) float32 of what a head receives: places or tokens, (B, D, H, W) or (B, T, D), are averaged."""
    averaged = {4: (2, 3), 3: (1,)}.get(features.dim())
    return features.float() if averaged is None else features.float().mean(averaged)


def check_backbone(module: nn.Module, head: str, images: torch.Tensor) -> FeatureSpec:
    """Make sure that the head on the features is the network on the images, by trying it on `images` (B >= 2).

    The network is left as it was. Call it within the autocast context of training.

    Raises:
        SplitError: it is not, and why.
    """
    _check_parameters(module, head)
    with evaluation_mode(module), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        features = _trace(module, head, images)
        torch.manual_seed(1)
        again = compute_features(module, head, images)
        beside_another = compute_features(module, head, torch.cat([images[:1], torch.zeros_like(images[1:])]))
    if not torch.equal(features, again):
        raise SplitError("the backbone gives other features each time, even in evaluation mode")
    # Not to the bit, since a kernel may add in another order.
    moved = torch.linalg.vector_norm((beside_another[0] - features[0]).float())
    if moved > _ROUNDING * torch.linalg.vector_norm(features[0].float()):
        raise SplitError("an image's features depend on those beside it, as with batch norm without running statistics")
    channels_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return FeatureSpec(
        tuple(features.shape[1:]), features.dtype, torch.channels_last if channels_last else torch.contiguous_format
    )


def _check_parameters(module: nn.Module, head: str) -> None:
    """Whatever trains belongs to the head, and to nothing else."""
    if not head:
        raise SplitError("the head is the whole network")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and not is_inside(name, (head,)):
            raise SplitError(f"{name} trains, and is no part of the head, {head}")


def _trace(module: nn.Module, head: str, images: torch.Tensor) -> torch.Tensor:
    """The features of `images`, once it is sure that the network ends in one call of its head."""
    calls: list[tuple[list[Any], Any, Any]] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        kept = output.clone() if isinstance(output, torch.Tensor) else output
        calls.append(([*inputs, *named], output, kept))

    handle = module.get_submodule(head).register_forward_hook(record, with_kwargs=True)
    try:
        buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        logits = functional_call(module, buffers, (images,))
    finally:
        handle.remove()
    if len(calls) != 1:
        raise SplitError(f"a pass through the network calls its head, {head}, {len(calls)} times and not once")
    inputs, output, kept = calls[0]
    features = inputs[0] if inputs else None
    if len(inputs) != 1 or not isinstance(features, torch.Tensor) or features.shape[:1] != images.shape[:1]:
        raise SplitError(f"the head, {head}, takes something else than one row of features per image")
    same = isinstance(logits, torch.Tensor) and isinstance(output, torch.Tensor)
    # A layer after it that works in place would leave the address and change the values.
    if not (same and logits.data_ptr() == output.data_ptr() and torch.equal(logits, kept)):
        raise SplitError(f"the network goes on after its head, {head}")
    return features
