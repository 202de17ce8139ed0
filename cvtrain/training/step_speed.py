"""`seconds_per_image`: how long a network takes for an image, by real steps."""

import time
from collections.abc import Callable

import torch
from torch import nn

from cvtrain.models.dry_run import first_tensor
from cvtrain.runtime.precision import autocast

STEPS = 2


def seconds_per_image(
    network: nn.Module,
    images: torch.Tensor,
    dtype: torch.dtype,
    *,
    trains: bool,
    now: Callable[[], float] = time.perf_counter,
) -> float:
    """Time `STEPS` steps after one that warms up. Changes buffers and gradients of `network`: give a copy.

    Args:
        images: (B, C, S, S) float32, normalised, on the network's device.
        dtype: of matrix products.
        trains: forward and backward in training mode; else forward in evaluation mode.
        now: the clock, in seconds.
    """
    network.train(trains)
    with torch.random.fork_rng(devices=[]):
        _step(network, images, dtype, trains)  # torch chooses its kernels in the first
        began = now()
        for _ in range(STEPS):
            _step(network, images, dtype, trains)
    return max(now() - began, 1e-9) / (STEPS * len(images))


def _step(network: nn.Module, images: torch.Tensor, dtype: torch.dtype, trains: bool) -> None:
    with torch.set_grad_enabled(trains), autocast(images.device, dtype):
        logits = first_tensor(network(images))
    if trains and logits is not None:
        network.zero_grad(set_to_none=True)
        logits.float().square().mean().backward()
    images[:1].sum().item()  # waits for the device
