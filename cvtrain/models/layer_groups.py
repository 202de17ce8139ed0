"""Parameters grouped by depth, for learning rates that fall from the head to the input."""

import re

from torch import nn

from cvtrain.models.heads import is_inside

# What turns pixels into the first features is one layer, wherever the network defines it.
_INPUT = re.compile(
    r"(class_token|cls_token|dist_token|reg_token|mask_token|pos_embed|pos_embedding|encoder\.pos_embedding"
    r"|conv_proj|patch_embed)(\.|$)"
)
# The part of a parameter's name that names its block; the first pattern that matches counts.
_BLOCKS = (
    re.compile(r"blocks\.\d+\.layers\.\d+(?=\.)"),  # maxvit
    re.compile(r"trunk_output\.[^.]+\.[^.]+(?=\.)"),  # regnet
    re.compile(r"features\.denseblock\d+\.[^.]+(?=\.)"),  # densenet
    re.compile(r"features\.[a-z][^.]*(?=\.)"),  # densenet, outside its blocks
    re.compile(r"encoder\.layers\.[^.]+(?=\.)|encoder\.ln(?=\.)"),  # vit
    re.compile(r"inception\d[a-z](?=\.)"),  # googlenet
    # Any network made of numbered blocks, nested ones included: layer1.0, features.3, stages.2.blocks.1 as stages.2.
    re.compile(r"(?:[^.]+\.)*?\d+(?:\.\d+)*(?=\.)"),
)
# Whole auxiliary branches, which are thrown away after training.
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


def group_by_depth(module: nn.Module, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Names of all parameters of `module`, in groups from the input to the head, each name exactly once.

    A group is a block of the network: a residual block, a transformer layer, an inception module, or a single layer
    where there are no blocks. A group with no matrix in it (a norm on its own) joins the one before it. The head is
    the last group, with auxiliary branches.

    Args:
        head: names of the head's submodules; empty: no group for it.
    """
    last_modules = (*head, *_AUXILIARY) if head else ()
    groups: dict[str, list[str]] = {}
    last: list[str] = []
    has_matrix: set[str] = set()
    for name, parameter in module.named_parameters():
        if last_modules and is_inside(name, last_modules):
            last.append(name)
            continue
        block = _block_of(name)
        groups.setdefault(block, []).append(name)
        if parameter.ndim >= 2:
            has_matrix.add(block)
    merged: list[list[str]] = []
    waiting: list[str] = []  # norms before the first matrix join it
    for block, names in groups.items():
        if block in has_matrix:
            merged.append(waiting + names)
            waiting = []
        elif merged:
            merged[-1].extend(names)
        else:
            waiting += names
    for names in (waiting, last):
        if names:
            merged.append(names)
    return tuple(tuple(names) for names in merged)


def _block_of(name: str) -> str:
    if _INPUT.match(name):
        return "input"
    for pattern in _BLOCKS:
        match = pattern.match(name)
        if match:
            return match.group()
    return name.split(".", 1)[0]
