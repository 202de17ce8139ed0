"""Counting multiply-accumulates by the shapes of what a network computes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MacCounter(TorchDispatchMode):
    """Within it, the multiply-accumulates of matrix products, convolutions and attention add up in `macs`.

    They are those of torch.utils.flop_counter (two operations each), which needs 2 s to load torch's compiler first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch asks: False keeps it from importing the compiler for this class
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(str(func.overloadpacket).removeprefix("aten."))
        if formula is not None:
            self.macs += formula(args, output)
        return output


def _product(first: int, second: int) -> Callable[[tuple[Any, ...], Any], int]:
    """(..., M, K) times (..., K, N): the arguments at these places."""

    def macs(args: tuple[Any, ...], output: Any) -> int:
        return math.prod(args[first].shape) * args[second].shape[-1]

    return macs


def _convolution(args: tuple[Any, ...], output: torch.Tensor) -> int:
    images, weight, transposed = args[0], args[1], args[6]  # weight (out, in / groups, ...), transposed (in, out / ...)
    return math.prod((images if transposed else output).shape) * math.prod(weight.shape[1:])


def _attention(args: tuple[Any, ...], output: Any) -> int:
    query, key, value = args[:3]  # (B, heads, L, D), (B, heads, S, D), (B, heads, S, E)
    return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


# By the names of torch's operators, https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml
FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "addmm": _product(1, 2),
    "baddbmm": _product(1, 2),
    "convolution": _convolution,
    "_convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}
