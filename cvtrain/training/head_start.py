"""How a new head starts: at zero logits, or at the logistic regression on the backbone's features."""

import logging

import torch
from torch import nn

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.model import Freeze, HeadInit
from cvtrain.config.schema.optim import BCEConfig
from cvtrain.config.schema.root import Config
from cvtrain.data.build import BatchLoader, build_eval_loader
from cvtrain.data.sources.source import ImageSource
from cvtrain.models.built import BuiltModel
from cvtrain.models.dry_run import evaluation_mode
from cvtrain.models.logistic_regression import LogisticRegression, fit_logistic_regression
from cvtrain.runtime.progress import Progress
from cvtrain.training.features import Backbone

log = logging.getLogger(__name__)

# Training images that the regression of a network that goes on training sees: a start need not be better than that.
# Where the head is all that trains, it sees those whose features fit into this many numbers (4 GiB).
MAX_START_IMAGES = 10_000
MAX_FEATURE_NUMBERS = 2**30


def start_head(
    config: Config,
    built: BuiltModel,
    backbone: Backbone,
    train: BatchLoader,
    *,
    class_weights: torch.Tensor | None,
    progress: Progress,
) -> bool:
    """Set a new head on pretrained weights to the logistic regression, as `model.head_init` says.

    The features are those of the training images without augmentation, in evaluation mode.

    Returns:
        True if the head is a candidate for best.pt only: it is evaluated, and training starts at zero logits.

    Raises:
        ConfigError: `model.head_init=logreg`, and it cannot be; or `trainer.epochs=0` and nothing would set the head.
    """
    wanted = config.model.head_init
    trains_all = wanted is HeadInit.auto and config.model.freeze is Freeze.none and config.trainer.epochs > 0
    if trains_all and not config.trainer.eval_at_start:
        return False
    obstacle = _obstacle(config, built)
    if obstacle is None and wanted is not HeadInit.zero:
        obstacle, line = _fit(config, built, backbone, train, class_weights, progress)
        if obstacle is None:
            words = ("is evaluated at", "; training starts at zero logits") if trains_all else ("starts at", "")
            log.info("head: %s %s%s", words[0], line, words[1])
            return trains_all
    if wanted is HeadInit.logreg:
        raise ConfigError("model.head_init", wanted.value, f"cannot be: {obstacle}", "leave it out: zero logits")
    if config.trainer.epochs == 0 and built.new_head:
        raise ConfigError(
            "trainer.epochs",
            0,
            "nothing would set the head: " + (obstacle or "model.head_init=zero"),
            "set trainer.epochs=20",
        )
    if obstacle is not None and built.new_head and built.is_pretrained and wanted is HeadInit.auto:
        log.info("head: starts at zero logits, since %s", obstacle)
    return False


def _obstacle(config: Config, built: BuiltModel) -> str | None:
    """Why no regression can set the head; None: nothing speaks against it so far."""
    if not built.is_pretrained:
        return "the backbone has random weights"
    if not built.new_head:
        return "the head came with the weights"
    if isinstance(config.loss, BCEConfig):
        return "loss=bce scores each class by itself"
    head = built.module.get_submodule(built.head[0]) if built.head else None
    if not isinstance(head, nn.Linear):
        return "the head is no linear layer"
    return None


def _fit(
    config: Config,
    built: BuiltModel,
    backbone: Backbone,
    train: BatchLoader,
    class_weights: torch.Tensor | None,
    progress: Progress,
) -> tuple[str | None, str]:
    """Fit the regression and put it into the head. Returns why it cannot be, and a line about it."""
    head = built.module.get_submodule(built.head[0])
    assert isinstance(head, nn.Linear)
    limit = MAX_FEATURE_NUMBERS // head.in_features if config.trainer.epochs == 0 else MAX_START_IMAGES
    with evaluation_mode(backbone.model):
        features, labels = compute_split_features(config, backbone, train.dataset.source, limit, progress)
    if features.dim() != 2 or features.shape[1] != head.in_features:
        return f"the head takes features of shape {tuple(features.shape[1:])}", ""
    if not bool(features.isfinite().all()):
        return "the features are not all finite", ""
    found = fit_logistic_regression(features, labels, head.out_features, class_weights=class_weights)
    with torch.no_grad():
        head.weight.copy_(found.weight)
        if head.bias is not None:
            head.bias.copy_(found.bias)
    return None, describe_fit(found, len(labels))


def describe_fit(found: LogisticRegression, num_images: int) -> str:
    """Return a line about a fit, for the log."""
    text = f"the logistic regression on the features of {num_images:,} images, L2 {found.l2:g}"
    if found.accuracy is None:
        return text
    return f"{text} by {found.num_folds}-fold cross-validation (accuracy {found.accuracy:.4f})"


def compute_split_features(
    config: Config, backbone: Backbone, source: ImageSource, max_images: int, progress: Progress
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, D) and labels (N,) of images, in evaluation mode, on the backbone's device.

    Of more than `max_images`, as many that lie evenly over the source. Images that cannot be read are left out, as in
    training, where they are counted.
    """
    size = config.data.eval_batch_size or config.data.batch_size
    limit = max(1, max_images // size) if len(source) > max_images else None
    images = build_eval_loader(config.data, source, device=backbone.device, limit_batches=limit)
    progress.start("features", images.num_images)
    features, labels = [], []
    try:
        for batch in images.epoch(0):
            if len(batch):
                features.append(backbone(batch.images))
                labels.append(batch.labels)
            progress.advance(len(batch))
    finally:
        images.close()
        progress.close()
    return torch.cat(features), torch.cat(labels).to(backbone.device)
