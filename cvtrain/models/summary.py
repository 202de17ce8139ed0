"""What a network is made of: layers, parameters and multiply-accumulate operations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cvtrain.models.dry_run import first_tensor, forward_zeros

# With fewer parts than this, the parts of the parts say more.
_FEW_PARTS = 4


@dataclass(frozen=True)
class SummaryRow:
    """One submodule. Counts are of parameters in it and below it; `output` is its shape for one image."""

    name: str
    type: str
    output: tuple[int, ...] | None
    params: int
    trainable: int


@dataclass(frozen=True)
class ModelSummary:
    """A network in numbers. `macs`: multiply-accumulates of matrix products and convolutions for one image."""

    type: str
    rows: tuple[SummaryRow, ...]
    params: int
    trainable: int
    macs: int

    def __str__(self) -> str:
        """A text table with a line of totals."""
        header = ("layer", "type", "output", "parameters", "trainable")
        cells = [(row.name, row.type, _shape(row.output), f"{row.params:,}", f"{row.trainable:,}") for row in self.rows]
        widths = [max(len(line[column]) for line in (header, *cells)) for column in range(len(header))]
        lines = []
        for line in (header, *cells):
            left = [line[column].ljust(widths[column]) for column in range(3)]
            right = [line[column].rjust(widths[column]) for column in range(3, 5)]
            lines.append("  ".join((*left, *right)))
        lines.insert(1, "-" * len(lines[0]))
        lines.append(lines[1])
        lines.append(
            f"{self.type}: {self.params:,} parameters, {self.trainable:,} trainable, {_giga(self.macs)} MACs per image"
        )
        return "\n".join(lines)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(str(side) for side in shape)


def _giga(count: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def summarize_model(module: nn.Module, input_shape: tuple[int, int, int], *, depth: int | None = None) -> ModelSummary:
    """Layers, parameters and multiply-accumulates of `module` for one image, in evaluation mode.

    The network runs once on a black image: on shapes alone would need torch's compiler, which takes 2 s to import. Its
    parameters, buffers, modes and torch's generator stay as they are. Layers without parameters are listed only if they
    change the shape.
    Operations are those that torchvision's `_ops` counts.

    Args:
        input_shape: (C, H, W) of an image.
        depth: how many levels of submodules get a row; None: 1, or 2 where the first level has fewer than four parts
            with parameters.
    """
    shapes: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = {}
    listed = _listed_modules(module, depth)
    handles = [layer.register_forward_hook(_recorder(name, shapes)) for name, layer in listed]
    try:
        macs = count_macs(module, (1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for name, layer in listed:
        before, after = shapes.get(name, (None, None))
        params, trainable = _count(layer)
        if params or before != after:
            rows.append(SummaryRow(name, type(layer).__name__, after, params, trainable))
    return ModelSummary(type(module).__name__, tuple(rows), *_count(module), macs)


def count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one pass over images of `shape` (B, C, H, W) in evaluation mode."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # torch itself counts the attention of GPUs only.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernels are not counted
    try:
        with FlopCounterMode(display=False, custom_mapping={on_cpu: attention}) as counter:
            forward_zeros(module, shape)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() // 2  # a product and a sum are two operations


def _listed_modules(module: nn.Module, depth: int | None) -> list[tuple[str, nn.Module]]:
    if depth is None:
        parts = [child for child in module.children() if next(child.parameters(), None) is not None]
        depth = 1 if len(parts) >= _FEW_PARTS else 2
    return [(name, layer) for name, layer in module.named_modules() if name and name.count(".") < depth]


def _recorder(name: str, shapes: dict[str, Any]) -> Any:
    def record(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = first_tensor(inputs), first_tensor(output)
        shapes[name] = (
            None if before is None else tuple(before.shape[1:]),
            None if after is None else tuple(after.shape[1:]),
        )

    return record


def _count(module: nn.Module) -> tuple[int, int]:
    """Parameters of `module`, shared ones once, and those of them that train."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
