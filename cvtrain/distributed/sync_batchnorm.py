"""Batch norm over the batch of all processes: `trainer.sync_batchnorm`."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class HostSyncBatchNorm(_BatchNorm):
    """What `nn.SyncBatchNorm`, which is for GPUs only, does on the host: mean and variance of the whole batch.

    Sums travel twice, first for the mean and then for the squares around it, since the difference of two large sums
    would lose digits.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"the input has {input.ndim} dimensions; batch norm needs (batch, channels, ...)")

    def forward(self, input: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        self._check_input_dim(input)
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        count = torch.tensor([float(input.numel() // input.size(1))])
        sums = all_reduce(torch.cat([values.sum(axes), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        shape = [1, -1] + [1] * (input.ndim - 2)
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach(), count)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, as `nn.BatchNorm2d` does, with the unbiased variance."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), factor)


def is_synced(module: nn.Module) -> bool:
    """True for a batch norm whose forward pass talks to other processes."""
    return isinstance(module, (HostSyncBatchNorm, nn.SyncBatchNorm))


@contextlib.contextmanager
def frozen_batch_norm(module: nn.Module) -> Iterator[None]:
    """Within, batch norm takes its running statistics and leaves them as they are."""
    active = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in active:
        layer.eval()
    try:
        yield
    finally:
        for layer in active:
            layer.train()


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every batch norm in it replaced by one over all processes; parameters and their names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batchnorm(child, device))
    if not isinstance(module, _BatchNorm) or is_synced(module):
        return module
    shared = HostSyncBatchNorm(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    # The tensors themselves, so that what has hold of them keeps it.
    shared._parameters, shared._buffers = module._parameters, module._buffers
    return shared.train(module.training)
