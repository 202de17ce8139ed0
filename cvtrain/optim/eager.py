"""Optimizers that leave torch's compiler alone: torch imports it, for 2 s, when the first optimizer is made."""

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def build_eager(optimizer_class: Callable[..., OptimizerT], *arguments: Any, **settings: Any) -> OptimizerT:
    """`optimizer_class(*arguments, **settings)`, whose step is the same but for what it tells the compiler.

    torch's optimizers ask the compiler not to look into them, and import it to ask. Where it is not imported there is
    nobody to ask. A torch that is built otherwise gets the optimizer as it is.
    """
    if "torch._dynamo" in sys.modules:
        return optimizer_class(*arguments, **settings)
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain  # where torch keeps the function that the compiler gave it
    optimizer = optimizer_class(*arguments, **settings)
    hooked = getattr(Optimizer, "profile_hook_step", None)
    if hooked is not None and not optimizer.defaults.get("differentiable"):
        plain_step = inspect.unwrap(type(optimizer).step)
        optimizer.step = types.MethodType(hooked(torch.no_grad()(plain_step)), optimizer)  # type: ignore[method-assign]
    return optimizer
