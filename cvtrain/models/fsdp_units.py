"""Where a network is cut when its weights are spread over processes: the parts that are whole one after another."""

from collections.abc import Iterator

import torch
from torch import nn

from cvtrain.models.dry_run import forward_zeros

# A part up to this size is not cut further, nor one up to this share of the network.
LARGEST_BYTES = 25 * 2**20
LARGEST_SHARE = 1 / 8
# A smaller part stays with what is around it: its own messages would take longer than its bytes.
SMALLEST_BYTES = 2**20


def choose_units(
    module: nn.Module,
    shape: tuple[int, int, int],
    *,
    largest: int | None = None,
    smallest: int = SMALLEST_BYTES,
) -> tuple[str, ...]:
    """Names of the submodules to be spread each by itself, inner ones before those around them.

    From the network's input down, a submodule is taken whole if it has at most `largest` bytes of parameters; else its
    parts are looked at, and what they leave over stays with it. So one gets the blocks of a transformer, the stages or
    blocks of a residual network, the large layers of VGG, and the head. Taken are only submodules that one pass over a
    black image calls, since a call is where their weights are brought together, and whose parameters belong to nobody
    else.

    Args:
        module: the network on the CPU.
        shape: (C, H, W) of an image.
        largest: bytes; None: 25 MiB, or an eighth of the network if that is more.
        smallest: bytes; what is smaller is no unit.
    """
    called = _called_modules(module, shape)
    shared = _shared_parameters(module)
    if largest is None:
        largest = max(LARGEST_BYTES, int(_num_bytes(module) * LARGEST_SHARE))

    def visit(name: str, layer: nn.Module) -> Iterator[str]:
        size = _num_bytes(layer)
        if size < smallest:
            return
        may_be = layer in called and not any(parameter in shared for parameter in layer.parameters())
        if may_be and size <= largest:
            yield name
            return
        found = [unit for child, part in layer.named_children() for unit in visit(f"{name}.{child}", part)]
        yield from found
        inside = {id(p): p for unit in found for p in module.get_submodule(unit).parameters()}
        if may_be and size - sum(p.numel() * p.element_size() for p in inside.values()) >= smallest:
            yield name

    return tuple(unit for name, child in module.named_children() for unit in visit(name, child))


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _called_modules(module: nn.Module, shape: tuple[int, int, int]) -> set[nn.Module]:
    """The submodules that a pass in evaluation mode goes through as modules."""
    called: set[nn.Module] = set()

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        called.add(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in module.modules()]
    try:
        forward_zeros(module, (1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _shared_parameters(module: nn.Module) -> set[torch.Tensor]:
    """Parameters with several names, such as an embedding that is the last layer too."""
    seen: set[torch.Tensor] = set()
    return {
        parameter
        for _, parameter in module.named_parameters(remove_duplicate=False)
        if parameter in seen or seen.add(parameter)  # type: ignore[func-returns-value]
    }
