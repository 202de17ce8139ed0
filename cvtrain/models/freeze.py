"""Freezing the backbone: everything but the head."""

import logging
from collections.abc import Collection

from torch import nn

from cvtrain.models.heads import is_inside

log = logging.getLogger(__name__)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class NoFreeze:
    """Stands in for `BackboneFreeze` where everything trains.

    Args:
        bn_stats: batch norm keeps its running statistics, and normalises by them in training too.
    """

    def __init__(self, *, bn_stats: bool = False) -> None:
        self.bn_stats = bn_stats

    def set_train_mode(self, model: nn.Module, epoch: int) -> None:
        """Set training mode for steps of `epoch` (0-based)."""
        model.train()
        if self.bn_stats:
            freeze_bn_stats(model)

    def trained_part(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that are in training mode at some time of the run."""
        return [model]


class BackboneFreeze(NoFreeze):
    """Keep the backbone fixed, for good or until an epoch.

    Args:
        head: names of submodules, as in `BuiltModel.head`.
        fixed: names of parameters that never train (`BuiltModel.fixed`).
        unfreeze_epoch: 1-based epoch from which on everything trains; None: never.
        bn_stats: batch norm keeps its running statistics from then on, too.
    """

    def __init__(
        self,
        head: tuple[str, ...],
        *,
        fixed: Collection[str] = (),
        unfreeze_epoch: int | None = None,
        bn_stats: bool = False,
    ) -> None:
        super().__init__(bn_stats=bn_stats)
        self.head = head
        self.fixed = fixed
        self.unfreeze_epoch = unfreeze_epoch
        self._was_frozen = False

    def set_train_mode(self, model: nn.Module, epoch: int) -> None:
        frozen = self.unfreeze_epoch is None or epoch + 1 < self.unfreeze_epoch
        if self._was_frozen and not frozen:
            log.info("epoch %d: the backbone trains from here on", epoch + 1)
        self._was_frozen = frozen
        set_backbone_trainable(model, self.head, trainable=not frozen, fixed=self.fixed)
        train_mode(model, self.head, backbone_frozen=frozen)
        if self.bn_stats and not frozen:
            freeze_bn_stats(model)

    def trained_part(self, model: nn.Module) -> list[nn.Module]:
        return [model.get_submodule(name) for name in self.head] if self.unfreeze_epoch is None else [model]


def set_backbone_trainable(
    module: nn.Module, head: tuple[str, ...], trainable: bool, *, fixed: Collection[str] = ()
) -> None:
    """Set `requires_grad` of every parameter outside `head` to `trainable`; the head's is always set.

    Gradients of what is frozen are dropped, so that no optimizer moves it by an old one.

    Args:
        head: names of submodules, as in `BuiltModel.head`.
        fixed: names of parameters that stay untrainable whatever is asked (`BuiltModel.fixed`).
    """
    for name, parameter in module.named_parameters():
        wanted = (trainable or is_inside(name, head)) and name not in fixed
        parameter.requires_grad_(wanted)
        if not wanted:
            parameter.grad = None


def train_mode(module: nn.Module, head: tuple[str, ...], backbone_frozen: bool) -> None:
    """Set training mode for the next steps.

    With a frozen backbone all of it goes to evaluation mode and only the head trains: batch norm uses and keeps its
    running statistics, and dropout and stochastic depth inside the backbone are off. A frozen feature extractor is
    then one fixed function, the same in training and evaluation; noise in it could be learnt from by nobody.
    Auxiliary heads hang on the training mode of the whole network, so they are off: their only use is to send gradients
    into the backbone.
    """
    if not backbone_frozen:
        module.train()
        return
    module.eval()
    for name in head:
        module.get_submodule(name).train()


def freeze_bn_stats(module: nn.Module) -> None:
    """Put every batch norm into evaluation mode: it uses and keeps its running statistics. Scale and shift train on."""
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.eval()


def has_batch_norm(modules: list[nn.Module]) -> bool:
    """Return True if some of `modules` contain batch norm, whose statistics of a single image mean nothing."""
    return any(isinstance(layer, BATCH_NORMS) for module in modules for layer in module.modules())
