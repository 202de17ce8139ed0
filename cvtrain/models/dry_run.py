"""Running a network on shapes alone: no data, no values, no change to it."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


def forward_meta(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The output of `module` for images of `shape` (B, C, H, W), on the meta device: shapes without values.

    Parameters, buffers and random generators keep their values. Takes the time of the Python code alone.

    Raises:
        Exception: whatever the network raises for such images, or for the meta device.
    """
    tensors = {
        name: tensor.detach().to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    images = torch.empty(shape, device="meta")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return functional_call(module, tensors, (images,))


def forward_zeros(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The output of `module` for black images of `shape`, on its own device, in evaluation mode.

    For networks that cannot run on shapes. Parameters, buffers and torch's CPU generator keep their values.
    """
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluation_mode(module):
        return functional_call(module, buffers, (torch.zeros(shape, device=device),))


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within; after it every submodule has the mode it had."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def run_in_evaluation(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """The output in evaluation mode for images of `shape`, on shapes alone if the network can do it.

    Raises:
        Exception: whatever the network raises for such images on its own device.
    """
    try:
        with evaluation_mode(module):
            return forward_meta(module, shape)
    except Exception:  # the meta device has its limits; the network itself decides
        return forward_zeros(module, shape)


def first_tensor(output: Any) -> torch.Tensor | None:
    """The first tensor in a tensor, sequence or mapping; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return next((tensor for tensor in map(first_tensor, items) if tensor is not None), None)


def has_unused_parameters(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return True if a training step on images of `shape` (B, C, H, W) gives some parameter no gradient.

    Also where the network cannot run on shapes alone, so that nobody knows.
    """
    parameters = {
        name: torch.empty_like(parameter, device="meta", requires_grad=True)
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point()
    }
    buffers = {name: buffer.detach().to("meta") for name, buffer in module.named_buffers()}
    modes = [(layer, layer.training) for layer in module.modules()]
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):
            output = functional_call(module, {**parameters, **buffers}, (torch.empty(shape, device="meta"),))
        tensors = output if isinstance(output, (list, tuple)) else [output]
        total = torch.stack([tensor.float().sum() for tensor in tensors if tensor is not None]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except Exception:  # the meta device has its limits
        return True
    finally:
        for layer, training in modes:
            layer.training = training
    return any(gradient is None for gradient in gradients)
