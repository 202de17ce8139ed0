"""Files of one evaluation: a row per image, a row per class, the confusion matrix, and the worst mistakes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import torch

from cvtrain.config.redact import redact
from cvtrain.data.build import BatchLoader
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.explain.explanation import overlay_heat
from cvtrain.loggers.build import RunLogger
from cvtrain.report.image_grid import plot_images
from cvtrain.report.overlays import overlay_path, write_overlays
from cvtrain.report.plots import plot_confusion
from cvtrain.report.plotter import Plotter
from cvtrain.report.tables import write_per_class_csv, write_predictions_csv
from cvtrain.training.evaluator import Evaluation

SAMPLE_IMAGES = 16

# (B, C, S, S) uint8 images on the host and their class ids (B,) int64 to heat maps (B, S, S) in 0..1; None: no maps.
HeatMaps = Callable[[torch.Tensor, torch.Tensor], np.ndarray | None]


def write_evaluation(
    run_dir: Path,
    split: str,
    evaluation: Evaluation,
    *,
    loader: BatchLoader,
    classes: tuple[str, ...],
    plotter: Plotter | None,
    title: str,
    heat_maps: HeatMaps | None = None,
) -> None:
    """Write predictions_<split>.csv and per_class_<split>.csv of one evaluation, and draw its plots.

    Args:
        plotter: None: no plots are wanted.
        title: name of the run, for the plots.
        heat_maps: of the weights that were scored, for the mistakes; None: the photos alone are drawn.
    """
    predictions = evaluation.predictions
    names = [loader.dataset.source.name(int(index)) for index in predictions.indices]
    write_predictions_csv(
        run_dir / f"predictions_{split}.csv",
        names,
        predictions.labels,
        predictions.top_classes,
        predictions.top_probs,
        classes,
    )
    rows = [{"class": name, **row} for name, row in zip(classes, evaluation.per_class, strict=True)]
    write_per_class_csv(run_dir / f"per_class_{split}.csv", rows)
    if plotter is None:
        return
    title = redact(f"{title}: {split}")
    path = run_dir / "plots" / f"confusion_{split}.png"
    plotter.draw(partial(plot_confusion, title=title), predictions.labels, predictions.preds, classes, path)
    path = run_dir / "plots" / f"mistakes_{split}.png"
    draw_mistakes(plotter, path, evaluation, loader=loader, classes=classes, title=title, heat_maps=heat_maps)


def draw_mistakes(
    plotter: Plotter,
    path: Path,
    evaluation: Evaluation,
    *,
    loader: BatchLoader,
    classes: tuple[str, ...],
    title: str,
    heat_maps: HeatMaps | None = None,
) -> None:
    """Draw the images that were given a wrong class with the highest confidence; no file if all were right.

    With `heat_maps`, each has beside it where the network saw the wrong class.
    """
    predictions = evaluation.predictions
    wrong = np.flatnonzero(predictions.preds != predictions.labels)
    overlay_path(path).unlink(missing_ok=True)  # of the end before, in a run that went on
    if len(wrong) == 0:
        path.unlink(missing_ok=True)
        return
    worst = wrong[np.argsort(-predictions.top_probs[wrong, 0], kind="stable")][:SAMPLE_IMAGES]
    batch = loader.dataset[BatchIndices(0, 0, predictions.indices[worst])]
    by_index = {int(predictions.indices[row]): row for row in worst}
    captions = []
    for index in batch.indices.tolist():
        row = by_index[index]
        pred, label = classes[predictions.preds[row]], classes[predictions.labels[row]]
        name = PurePath(loader.dataset.source.name(index)).name
        captions.append(
            f"predicted {pred} {predictions.top_probs[row, 0]:.2f}\ntrue {label}\n{name}\n"
            f"loss {predictions.losses[row]:.2f}"
        )
    if captions:
        heading = f"{title}, most confident mistakes ({len(wrong):,} of {len(predictions.labels):,} are wrong)"
        preds = torch.as_tensor([int(predictions.preds[by_index[index]]) for index in batch.indices.tolist()])
        names = [loader.dataset.source.name(index) for index in batch.indices.tolist()]
        plot = partial(plot_mistakes, title=heading, names=names, heat_maps=heat_maps)
        plotter.draw(plot, batch.images, preds, captions, path)


def plot_mistakes(
    images: torch.Tensor,
    preds: torch.Tensor,
    captions: list[str],
    path: Path,
    *,
    title: str,
    names: list[str],
    heat_maps: HeatMaps | None,
) -> None:
    """Draw a grid of images (B, C, S, S) uint8 with captions, each beside its heat map for class `preds` (B,).

    The heat maps are kept by the names of the images, for the report.
    """
    heat = None if heat_maps is None else heat_maps(images, preds)
    if heat is None:
        plot_images(images.numpy(), captions, path, title=title)
        return
    photos = images.permute(0, 2, 3, 1).numpy()  # (B, S, S, C)
    overlays = [overlay_heat(photo, map) for photo, map in zip(photos, heat, strict=True)]
    write_overlays(overlay_path(path), names, overlays)
    pairs = [pair for pictures in zip(photos, overlays, strict=True) for pair in pictures]
    pixels = np.stack([np.broadcast_to(picture, (*picture.shape[:2], 3)) for picture in pairs])  # (2 B, S, S, 3)
    texts = [text for caption in captions for text in (caption, "where it saw that")]
    plot_images(pixels.transpose(0, 3, 1, 2), texts, path, title=title, group=2)


def log_evaluation_plots(logger: RunLogger, run_dir: Path, split: str, step: int) -> None:
    """Log the plots of `write_evaluation`, once they are drawn."""
    for kind in ("confusion", "mistakes"):
        path = run_dir / "plots" / f"{kind}_{split}.png"
        if path.exists():
            logger.log_image(f"{split}/{kind}", path, step)
