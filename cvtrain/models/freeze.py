"""Freezing the backbone: everything but the head."""

from collections.abc import Collection

from torch import nn

from cvtrain.models.heads import is_inside


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

    With a frozen backbone all of it goes to evaluation mode and only the head trains: batch-norm uses and keeps its
    running statistics, and dropout and stochastic depth inside the backbone are off. A frozen feature extractor is
    then one fixed function, the same in training and evaluation; noise in it could be learnt from by nobody.
    Auxiliary heads hang on the training mode of the whole network, so they rest: their only use is to send gradients
    into the backbone.
    """
    if not backbone_frozen:
        module.train()
        return
    module.eval()
    for name in head:
        module.get_submodule(name).train()
