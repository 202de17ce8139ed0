"""Losses over class ids or soft targets: the one that training minimises and the one that evaluation averages.

Two numbers on purpose. `criterion(logits, targets)` is the training loss: with label smoothing and class weights, a
mean over the batch. `criterion.per_sample(logits, targets)` is the evaluation loss, one number per sample without
smoothing and without weights: its mean over a split does not depend on how the split was batched, and runs with
different smoothing or balancing can be compared by it.

Everything is computed in float32, whatever type autocast gave the logits.
"""

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvtrain.config.schema.optim import BCEConfig, CrossEntropyConfig, FocalConfig, LossConfig


class Criterion(nn.Module, ABC):
    """Label smoothing, class weights and the two means; a subclass gives the loss of a sample.

    With smoothing s, the target t of class c becomes (1 - s) t + s / num_classes (Szegedy et al. 2016, section 7).
    With class weights w, a batch's loss is sum_i w(t_i) l_i / sum_i w(t_i), where w(t) = sum_c t_c w_c is the weight of
    the target before smoothing: the class's own weight for a class id, and for mixup and cutmix the mixture of the two
    classes' weights. Smoothing spreads the target, never the weight: weights on the smoothed terms would pull every
    sample towards the rarest class.

    Args:
        num_classes: number of classes K.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        class_weights: (K,) float, above 0; None: all 1.
    """

    class_weights: Tensor | None

    def __init__(self, *, num_classes: int, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        if class_weights is not None and class_weights.shape != (num_classes,):
            raise ValueError(f"class_weights has shape {tuple(class_weights.shape)}; it has to be ({num_classes},)")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else class_weights.detach().float()
        # Not in the state dict: the weights follow from the data's class counts.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss: () float32, differentiable in `logits`.

        Args:
            logits: (B, K), any float type.
            targets: (B,) int64 class ids, or (B, K) float rows that sum to 1.
        """
        losses = self.loss_per_sample(self._checked(logits), targets, self.label_smoothing)
        if self.class_weights is None:
            return losses.mean()
        weights = self.sample_weights(targets)
        return (losses * weights).sum() / weights.sum()

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Return the weight w(t) of each sample, (B,) float32."""
        if self.class_weights is None:
            return torch.ones(len(targets), device=targets.device)
        return self.class_weights[targets] if targets.ndim == 1 else targets.float() @ self.class_weights

    def total_weight(self, targets: Tensor) -> Tensor | int:
        """Return the divisor of `forward`: the number of samples, or () float32, the sum of their weights.

        The mean over a batch is the sum over its parts of forward(part) * total_weight(part) / total_weight(batch).
        """
        return len(targets) if self.class_weights is None else self.sample_weights(targets).sum()

    def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the evaluation loss of each sample, (B,) float32, without smoothing and class weights.

        Args: as `forward`.
        """
        return self.loss_per_sample(self._checked(logits), targets, 0.0)

    @abstractmethod
    def loss_per_sample(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Return the unweighted loss of each sample, (B,) float32.

        Args:
            logits: (B, K) float32.
            targets: as in `forward`.
            smoothing: share of each target spread over all classes.
        """

    def _checked(self, logits: Tensor) -> Tensor:
        if logits.ndim != 2 or logits.size(1) != self.num_classes:
            raise ValueError(
                f"the model's logits have shape {tuple(logits.shape)}; they have to be (batch, {self.num_classes}), "
                "one column per class. A model of your own takes the number of classes as num_classes"
            )
        return logits.float()

    def _distribution(self, targets: Tensor, smoothing: float) -> Tensor:
        """Return targets as smoothed rows, (B, K) float32."""
        if targets.ndim == 1:
            # Compared, not F.one_hot: that checks the ids' range on the host, which would stall the device each step.
            targets = targets.unsqueeze(1) == torch.arange(self.num_classes, device=targets.device)
        return targets.float() * (1 - smoothing) + smoothing / self.num_classes


class CrossEntropy(Criterion):
    """-sum_c t_c log p_c with p = softmax(logits)."""

    def loss_per_sample(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """As `Criterion.loss_per_sample`; class ids go through torch's own kernel, which makes no (B, K) targets."""
        if targets.ndim == 2:
            targets = targets.float()
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


class Focal(Criterion):
    """-sum_c t_c (1 - p_c)^gamma log p_c with p = softmax(logits) (Lin et al. 2017, equation 5).

    The paper's binary loss in its usual multi-class form; its alpha_t are the class weights. Soft targets weigh each
    class's term. gamma=0 is cross entropy.

    Args:
        gamma: at least 0; larger plays down well-classified samples more.
        num_classes, label_smoothing, class_weights: as in `Criterion`.
    """

    def __init__(
        self,
        *,
        gamma: float,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, label_smoothing=label_smoothing, class_weights=class_weights)
        self.gamma = gamma

    def loss_per_sample(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """As `Criterion.loss_per_sample`."""
        log_probs = F.log_softmax(logits, dim=1)
        # 1 - p without cancellation near p = 1; the floor keeps the gradient of x^gamma finite for gamma < 1.
        complement = (-torch.expm1(log_probs)).clamp_min(torch.finfo(torch.float32).tiny)
        return (self._distribution(targets, smoothing) * complement.pow(self.gamma) * -log_probs).sum(dim=1)


class BinaryCrossEntropy(Criterion):
    """1 / K sum_c [-t_c log q_c - (1 - t_c) log(1 - q_c)] with q = sigmoid(logits).

    One binary question per class, for mixed and soft targets (Wightman et al. 2021, "ResNet strikes back"). As in timm
    the mean over classes is taken, not the sum, so gradients are K times smaller than the sum's.
    """

    def loss_per_sample(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """As `Criterion.loss_per_sample`."""
        soft = self._distribution(targets, smoothing)
        return F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(dim=1)


def build_criterion(config: LossConfig, *, num_classes: int, class_weights: Tensor | None = None) -> Criterion:
    """Build the loss of `config`.

    Args:
        config: one of `LOSS_CONFIGS`.
        num_classes: number of classes K.
        class_weights: (K,) float, above 0; None: all 1.
    """
    arguments: dict[str, Any] = {
        "num_classes": num_classes,
        "label_smoothing": config.label_smoothing,
        "class_weights": class_weights,
    }
    if isinstance(config, CrossEntropyConfig):
        return CrossEntropy(**arguments)
    if isinstance(config, FocalConfig):
        return Focal(gamma=config.gamma, **arguments)
    if isinstance(config, BCEConfig):
        return BinaryCrossEntropy(**arguments)
    raise AssertionError(f"{type(config).__name__} is not in LOSS_CONFIGS")


def loss_with_aux_heads(
    criterion: nn.Module, outputs: Tensor | tuple[Tensor | None, ...], targets: Tensor, aux_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of a model's output, auxiliary heads included, and the logits of its main head.

    loss = criterion(logits) + aux_weight * sum over auxiliary heads of criterion(their logits) (Szegedy et al. 2015,
    GoogLeNet, section 5).

    Args:
        criterion: (logits, targets) -> () loss.
        outputs: logits (B, K), or what torchvision's googlenet and inception_v3 give in training: a named tuple of
            `logits` and auxiliary logits, each of which may be None.
        targets: as the criterion takes them.
        aux_weight: at least 0.

    Returns:
        The loss () and the logits (B, K).
    """
    if isinstance(outputs, Tensor):
        return criterion(outputs, targets), outputs
    if not isinstance(outputs, tuple) or "logits" not in getattr(outputs, "_fields", ()):
        raise ValueError(
            f"the model's output is a {type(outputs).__name__}; it has to be a tensor of logits (batch, classes), or a "
            "named tuple with `logits` and auxiliary logits. Return the logits from forward()"
        )
    named = outputs._asdict()  # type: ignore[attr-defined]
    logits = cast(Tensor, named.pop("logits"))
    loss = criterion(logits, targets)
    for auxiliary in named.values():
        if auxiliary is not None:
            loss = loss + aux_weight * criterion(auxiliary, targets)
    return loss, logits
