"""Parameter groups: which learning rate and weight decay each parameter gets, and the table that shows it."""

from collections.abc import Collection
from typing import Any

from torch import nn

from cvtrain.config.errors import ConfigError

NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
LINEAR_MAPS = (
    *(nn.Linear, nn.Bilinear, nn.MultiheadAttention),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# Learned positions and tokens of transformers, as torchvision and timm call them.
EMBEDDINGS = (
    "class_token",
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "pos_embedding",
    "position_embedding",
    "relative_position_bias_table",
)


def parameter_groups(
    module: nn.Module,
    *,
    head: tuple[str, ...],
    layers: tuple[tuple[str, ...], ...],
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = False,
    norm_and_bias_lr_scale: float = 1.0,
    backbone_lr_scale: float = 1.0,
    layer_decay: float | None = None,
    names: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Every parameter of `module`, frozen ones too, in exactly one group of equal rate, decay and part.

    Frozen parameters are in, since freezing is `requires_grad=False`: optimizers pass over a parameter without a
    gradient, and one that is unfrozen later trains without a new optimizer.

    The rate of a head parameter is `lr`; of any other `lr * backbone_lr_scale * layer_decay ** distance`, where
    `distance` counts the entries of `layers` between it and the last one (Clark et al. 2020, ELECTRA, section 3.3;
    Bao et al. 2022, BEiT).

    Args:
        module: the network.
        head: names of the submodules that are the head; empty if the network names none.
        layers: parameter names by depth, input first, head last. Read only with `layer_decay`, and then each
            parameter has to be in it once.
        lr: peak learning rate, above 0.
        weight_decay: for weights that multiply their input, see `is_weight`.
        decay_norm_and_bias: decay all parameters, norms, biases and embeddings too.
        norm_and_bias_lr_scale: factor on the rate of what is no such weight; above 0.
        backbone_lr_scale: rate of all but the head as a multiple of `lr`; at least 0.
        layer_decay: factor on the rate per layer below the last, in (0, 1]; None: off.
        names: only these parameters; None: all.

    Returns:
        torch parameter groups, backbone first and head last, with `name`, `params`, `param_names`, `lr`,
        `initial_lr` (what a schedule multiplies) and `weight_decay`.

    Raises:
        ConfigError: a scale is set that this network gives no meaning to.
        ValueError: `head` or `layers` does not fit the network.
    """
    parameters = dict(module.named_parameters())
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameters: there is nothing to train")
    in_head = head_parameters(module, head)
    if backbone_lr_scale != 1:
        _check_has_backbone(parameters, in_head, key="optimizer.backbone_lr_scale", value=backbone_lr_scale)
    depths = dict.fromkeys(parameters, 0)
    last_depth = 0
    if layer_decay is not None:
        depths, last_depth = _depths(module, layers, layer_decay), len(layers) - 1
    weights = weight_names(module)

    members: dict[tuple[bool, int, float, float], list[str]] = {}
    for name in parameters:
        if names is None or name in names:
            depth = last_depth if name in in_head else depths[name]
            decay = weight_decay if decay_norm_and_bias or name in weights else 0.0
            vector_scale = 1.0 if name in weights else norm_and_bias_lr_scale
            members.setdefault((name in in_head, depth, -decay, vector_scale), []).append(name)

    groups = []
    for (is_head, depth, negative_decay, vector_scale), group_names in sorted(members.items()):
        part = "head" if is_head else "backbone" if head else "model"
        layer = f" layer {depth}" if last_depth and not is_head else ""
        scale = 1.0 if is_head else backbone_lr_scale * (layer_decay or 1.0) ** (last_depth - depth)
        scale *= vector_scale
        decays = "decay" if negative_decay else "no_decay"
        groups.append(
            {
                "params": [parameters[name] for name in group_names],
                "param_names": group_names,
                "name": f"{part}{layer} {decays}{'' if vector_scale == 1 else ' scaled'}",
                "lr": lr * scale,
                "initial_lr": lr * scale,
                "weight_decay": -negative_decay,
            }
        )
    return groups


def head_parameters(module: nn.Module, head: tuple[str, ...]) -> set[str]:
    """Names of the parameters inside the submodules `head`."""
    modules = dict(module.named_modules())
    for name in head:
        if name not in modules:
            raise ValueError(f"head: {type(module).__name__} has no submodule {name!r}; its own: {_children(module)}")
    return {name for name, _ in module.named_parameters() if any(name.startswith(f"{prefix}.") for prefix in head)}


def weight_names(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for: see `is_weight`.

    A network's own `no_weight_decay()`, timm's convention, takes further names out.
    """
    owners = dict(module.named_modules())
    declared = getattr(module, "no_weight_decay", None)
    exempt = set(declared()) if callable(declared) else set()
    return {
        name
        for name, parameter in module.named_parameters()
        if name not in exempt and is_weight(name, tuple(parameter.shape), owners[name.rpartition(".")[0]])
    }


def is_weight(name: str, shape: tuple[int, ...], owner: nn.Module) -> bool:
    """True for matrices and filters, which multiply their input; those are what weight decay is for.

    False for biases, norms, embeddings (learned positions, class tokens, `nn.Embedding`) and scales: vectors, and
    parameters outside of linear and convolution layers with at most one dimension longer than 1, such as ConvNeXt's
    `layer_scale` (C, 1, 1). Following He et al. 2019 (Bag of Tricks, "no bias decay") and, for embeddings,
    torchvision's and timm's recipes for transformers.

    Args:
        name: the parameter's full name.
        shape: its shape.
        owner: the module that holds it.
    """
    attribute = name.rpartition(".")[2]
    if len(shape) < 2 or attribute == "bias" or isinstance(owner, (*NORMS, nn.Embedding)) or attribute in EMBEDDINGS:
        return False
    return isinstance(owner, LINEAR_MAPS) or sum(size > 1 for size in shape) > 1


def format_groups(groups: list[dict[str, Any]]) -> str:
    """A text table of parameter groups: name, tensors, parameters, trainable, peak rate and weight decay."""
    rows: list[tuple[str, ...]] = [("parameter group", "tensors", "parameters", "trainable", "lr", "weight decay")]
    totals = [0, 0, 0]
    for group in groups:
        counts = (
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
            sum(parameter.numel() for parameter in group["params"] if parameter.requires_grad),
        )
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        numbers = (f"{count:,}" for count in counts)
        rows.append((group["name"], *numbers, f"{group['initial_lr']:.4g}", f"{group['weight_decay']:.4g}"))
    rows.append(("total", *(f"{total:,}" for total in totals), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _check_has_backbone(parameters: Collection[str], in_head: set[str], *, key: str, value: float) -> None:
    if not in_head:
        raise ConfigError(
            key=key, value=value, rule="this network names no head", remedy="set model.head, or leave it 1"
        )
    if len(in_head) == len(parameters):
        raise ConfigError(
            key=key, value=value, rule="has no effect: all of this network is its head", remedy=f"leave {key} out"
        )


def _depths(module: nn.Module, layers: tuple[tuple[str, ...], ...], layer_decay: float) -> dict[str, int]:
    """Depth of each parameter, 0 at the input."""
    if len(layers) < 2:
        raise ConfigError(
            key="optimizer.layer_decay",
            value=layer_decay,
            rule=f"has no effect: this network is known as {len(layers)} layer",
            remedy="set optimizer.layer_decay=null, or optimizer.backbone_lr_scale for a smaller rate below the head",
        )
    # A tied parameter may be listed under any of its names.
    canonical = {id(parameter): name for name, parameter in module.named_parameters()}
    aliases = {name: canonical[id(parameter)] for name, parameter in module.named_parameters(remove_duplicate=False)}
    depths: dict[str, int] = {}
    for depth, names in enumerate(layers):
        for listed in names:
            if listed not in aliases:
                raise ValueError(f"layers: {type(module).__name__} has no parameter {listed!r}")
            name = aliases[listed]
            if depths.setdefault(name, depth) != depth:
                raise ValueError(f"layers: parameter {name!r} is in layers {depths[name]} and {depth}")
    if missing := sorted(set(canonical.values()) - set(depths)):
        raise ValueError(f"layers: parameters in no layer: {', '.join(missing)}")
    return depths


def _children(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "none"
