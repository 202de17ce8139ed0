"""`build_optimizer`: from config to a torch optimizer over parameter groups, with the fastest kernels there are."""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.optim import (
    AdadeltaConfig,
    AdagradConfig,
    AdamaxConfig,
    AdamConfig,
    AdamWConfig,
    Kernel,
    MuonConfig,
    NAdamConfig,
    OptimizerConfig,
    RAdamConfig,
    RMSpropConfig,
    SGDConfig,
)
from cvtrain.optim.muon import MuonWithAdamW, muon_parameters
from cvtrain.optim.param_groups import parameter_groups

# torch declares no common signature for its optimizers.
OptimizerClass = Callable[..., Optimizer]

# The class and its arguments besides lr, weight decay and kernel.
OPTIMIZERS: dict[type[OptimizerConfig], tuple[OptimizerClass, Callable[[Any], dict[str, Any]]]] = {
    SGDConfig: (SGD, lambda c: {"momentum": c.momentum, "nesterov": c.nesterov}),
    AdamConfig: (Adam, lambda c: {"betas": tuple(c.betas), "eps": c.eps, "amsgrad": c.amsgrad}),
    AdamWConfig: (AdamW, lambda c: {"betas": tuple(c.betas), "eps": c.eps, "amsgrad": c.amsgrad}),
    NAdamConfig: (
        NAdam,
        lambda c: {
            "betas": tuple(c.betas),
            "eps": c.eps,
            "momentum_decay": c.momentum_decay,
            "decoupled_weight_decay": c.decoupled_weight_decay,
        },
    ),
    RAdamConfig: (
        RAdam,
        lambda c: {
            "betas": tuple(c.betas),
            "eps": c.eps,
            "decoupled_weight_decay": c.decoupled_weight_decay,
        },
    ),
    RMSpropConfig: (
        RMSprop,
        lambda c: {"alpha": c.alpha, "eps": c.eps, "momentum": c.momentum, "centered": c.centered},
    ),
    AdagradConfig: (Adagrad, lambda c: {"eps": c.eps, "initial_accumulator_value": c.initial_accumulator}),
    AdadeltaConfig: (Adadelta, lambda c: {"rho": c.rho, "eps": c.eps}),
    AdamaxConfig: (Adamax, lambda c: {"betas": tuple(c.betas), "eps": c.eps}),
}


def build_optimizer(
    config: OptimizerConfig,
    module: nn.Module,
    *,
    head: tuple[str, ...],
    layers: tuple[tuple[str, ...], ...],
    device: torch.device,
) -> Optimizer:
    """The optimizer of `config` over all parameters of `module`, which already is on `device`.

    Each group carries `name`, `param_names` and `initial_lr`. Loading a state whose parameters have other names, or
    another order, is a ValueError.

    Args:
        config: one of `OPTIMIZER_CONFIGS`.
        module: the network, in its final memory format and on `device`.
        head, layers: the network's head and depths, see `parameter_groups`.
        device: where the step will run; it decides which kernels there are.

    Raises:
        ConfigError: the kernel does not exist for this optimizer on this device, or a setting fits this network not.
    """
    groups = partial(
        parameter_groups,
        module,
        head=head,
        layers=layers,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
        norm_and_bias_lr_scale=config.norm_and_bias_lr_scale,
        backbone_lr_scale=config.backbone_lr_scale,
        layer_decay=config.layer_decay,
    )
    optimizer: Optimizer
    if isinstance(config, MuonConfig):
        matrices = muon_parameters(module, head=head, layers=layers)
        rest = {name for name, _ in module.named_parameters()} - matrices
        optimizer = MuonWithAdamW(
            groups(lr=config.lr, names=matrices),
            groups(lr=config.adamw_lr, names=rest),
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.ns_steps,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            **kernel_arguments(AdamW, config.kernel, device),
        )
        for group in optimizer.param_groups:
            group["name"] += f" ({group['algorithm']})"
    else:
        optimizer_class, arguments = OPTIMIZERS[type(config)]
        kernel = kernel_arguments(optimizer_class, config.kernel, device)
        optimizer = optimizer_class(groups(lr=config.lr), lr=config.lr, **arguments(config), **kernel)
    if isinstance(optimizer, SGD) and optimizer.defaults["fused"] and optimizer.defaults["momentum"]:
        optimizer.register_step_pre_hook(_start_momentum_at_zero)
    optimizer.register_load_state_dict_pre_hook(_check_parameter_names)
    return optimizer


def kernel_arguments(optimizer_class: OptimizerClass, kernel: Kernel, device: torch.device) -> dict[str, bool]:
    """Arguments that choose an optimizer's implementation.

    `fused` updates a parameter in one kernel, `foreach` does each operation on all parameters in one launch, `single`
    goes parameter by parameter. `auto` takes fused where the class has it for the device; else foreach on an
    accelerator, where launches cost, and single on the CPU, where foreach was up to 3.8 times slower (Adagrad,
    ResNet-18, one core) and never more than 1.4 times faster.

    Raises:
        ConfigError: `fused` was asked for and there is none.
    """
    has_fused = _runs_fused(optimizer_class, device.type)
    if kernel is Kernel.fused and not has_fused:
        raise ConfigError(
            key="optimizer.kernel",
            value=kernel.value,
            rule=f"torch {torch.__version__} has no fused {optimizer_class.__name__} for {device.type}",
            remedy="set optimizer.kernel=auto, foreach or single",
        )
    if kernel is Kernel.fused or (kernel is Kernel.auto and has_fused):
        return {"fused": True}
    return {"foreach": kernel is Kernel.foreach or (kernel is Kernel.auto and device.type != "cpu")}


@cache
def _runs_fused(optimizer_class: OptimizerClass, device_type: str) -> bool:
    """Whether a fused step works: tried on one number, since torch has no list by class and device."""
    if "fused" not in inspect.signature(optimizer_class).parameters:
        return False
    number = nn.Parameter(torch.zeros(1, device=device_type))
    number.grad = torch.zeros_like(number)
    try:
        optimizer_class([number], lr=1.0, fused=True).step()
    except RuntimeError:  # NotImplementedError is one
        return False
    return True


def _start_momentum_at_zero(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give parameters that get their first gradient a momentum of 0, which is what no momentum means to SGD.

    torch's fused SGD raises a TypeError where a group has parameters with momentum beside parameters without, as after
    unfreezing some of them.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _check_parameter_names(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """torch matches states by position only; a network with other parameters would get the wrong ones."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=False):
        if group["param_names"] != saved.get("param_names", group["param_names"]):
            pairs = zip(group["param_names"], saved["param_names"], strict=False)
            here, there = next(((a, b) for a, b in pairs if a != b), (len(group["params"]), len(saved["params"])))
            raise ValueError(
                f"the optimizer's state is of another network or other groups: {group['name']} has {here}, "
                f"the state {there}. Start a new run from the weights alone, or use the settings of the saved run"
            )
