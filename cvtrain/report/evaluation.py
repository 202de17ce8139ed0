"""Files of one evaluation: a row per image, a row per class, the confusion matrix, and the worst mistakes."""

from functools import partial
from pathlib import Path, PurePath

import numpy as np

from cvtrain.config.redact import redact
from cvtrain.data.build import BatchLoader
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.loggers.build import RunLogger
from cvtrain.report.image_grid import plot_images
from cvtrain.report.plots import plot_confusion
from cvtrain.report.plotter import Plotter
from cvtrain.report.tables import write_per_class_csv, write_predictions_csv
from cvtrain.training.evaluator import Evaluation

SAMPLE_IMAGES = 16


def write_evaluation(
    run_dir: Path,
    split: str,
    evaluation: Evaluation,
    *,
    loader: BatchLoader,
    classes: tuple[str, ...],
    plotter: Plotter | None,
    title: str,
) -> None:
    """Write predictions_<split>.csv and per_class_<split>.csv of one evaluation, and draw its plots.

    Args:
        plotter: None: no plots are wanted.
        title: name of the run, for the plots.
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
    draw_mistakes(plotter, path, evaluation, loader=loader, classes=classes, title=title)


def draw_mistakes(
    plotter: Plotter, path: Path, evaluation: Evaluation, *, loader: BatchLoader, classes: tuple[str, ...], title: str
) -> None:
    """Draw the images that were given a wrong class with the highest confidence; no file if all were right."""
    predictions = evaluation.predictions
    wrong = np.flatnonzero(predictions.preds != predictions.labels)
    if len(wrong) == 0:
        path.unlink(missing_ok=True)  # of the end before, in a run that went on
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
        plotter.draw(partial(plot_images, title=heading), batch.images.numpy(), captions, path)


def log_evaluation_plots(logger: RunLogger, run_dir: Path, split: str, step: int) -> None:
    """Log the plots of `write_evaluation`, once they are drawn."""
    for kind in ("confusion", "mistakes"):
        path = run_dir / "plots" / f"{kind}_{split}.png"
        if path.exists():
            logger.log_image(f"{split}/{kind}", path, step)
