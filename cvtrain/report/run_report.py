"""What a run leaves in its folder: the config at the start; figures, pictures and tables at the end."""

import logging
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cvtrain.checkpoint import BEST, inference_weights, load_checkpoint
from cvtrain.config.redact import redact
from cvtrain.config.serialize import to_plain
from cvtrain.config.text import first_line
from cvtrain.data.build import BatchLoader
from cvtrain.data.images.errors import BadImage, write_skipped
from cvtrain.data.loader.sampler import BatchIndices
from cvtrain.distributed.coordinator import build_coordinator
from cvtrain.explain.explanation import heat_maps
from cvtrain.loggers.files import METRICS_JSONL, read_metrics
from cvtrain.report.bottleneck import Bottleneck, collect_facts, find_bottleneck, summarize_times
from cvtrain.report.environment import write_environment
from cvtrain.report.evaluation import SAMPLE_IMAGES, log_evaluation_plots, write_evaluation
from cvtrain.report.image_grid import plot_images
from cvtrain.report.json_file import write_json
from cvtrain.report.plots import plot_curves
from cvtrain.report.plotter import Plotter
from cvtrain.report.run_page import REPORT, write_run_page
from cvtrain.report.run_results import read_results
from cvtrain.runtime.console import display_path
from cvtrain.runtime.files import atomic_write, remove_temporary_files
from cvtrain.runtime.memory import peak_memory_gib
from cvtrain.runtime.precision import precision_name
from cvtrain.runtime.rng import derive_seed
from cvtrain.runtime.signals import StopSignals
from cvtrain.training.build import Run
from cvtrain.training.calibration import calibrate, describe_calibration
from cvtrain.training.evaluator import Evaluation
from cvtrain.training.state import StopReason
from cvtrain.training.trainer import BATCH_TRANSFORM_STREAM

log = logging.getLogger(__name__)

CURVES = "curves.png"


def write_run_metadata(config: Any, run_dir: Path, overrides: list[str], *, step: int = 0) -> None:
    """Write config.yaml, overrides.yaml and environment.json before anything can go wrong.

    Removes what a process that was killed had begun to write in the folder.
    A run that goes on at `step` moves those from before to history/step_<step>/.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for folder in (run_dir, run_dir / "plots"):  # the store of checkpoints sees to its own
        remove_temporary_files(folder)
    texts = {
        name: yaml.safe_dump(redact(content), sort_keys=False, allow_unicode=True)
        for name, content in (("config.yaml", to_plain(config)), ("overrides.yaml", overrides))
    }
    if step:
        history = run_dir / "history" / f"step_{step:08d}"
        history.mkdir(parents=True, exist_ok=True)
        for name in (*texts, "environment.json"):
            if (run_dir / name).exists():
                (run_dir / name).replace(history / name)
    for name, text in texts.items():
        with atomic_write(run_dir / name) as file:
            file.write(text)
    write_environment(run_dir / "environment.json")


def draw_preview(run: Run, plotter: Plotter) -> None:
    """Draw plots/train_samples.png: the first training images as the model will see them, augmented and mixed."""
    loader, trainer, classes = run.loaders.train, run.trainer, run.splits.classes
    key = next(loader.plan.batches(0))
    batch = loader.dataset[BatchIndices(key.epoch, key.number, key.indices[:SAMPLE_IMAGES])]
    if len(batch) == 0:
        return
    images = run.normalizer.to_float(batch.images.to(trainer.device))
    seed = derive_seed(run.config.seed, BATCH_TRANSFORM_STREAM, 0)
    images, targets = trainer.batch_transform(images, batch.labels.to(trainer.device), seed)
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    path = run.run_dir / "plots" / "train_samples.png"
    captions = [describe_target(target, classes) for target in targets.cpu()]
    title = redact(f"{run_title(run)}: training images as the model sees them")
    plotter.draw(partial(plot_images, title=title), pixels, captions, path)
    if path.exists():
        run.logger.log_image("train/samples", path, step=0)


def describe_target(target: torch.Tensor, classes: tuple[str, ...]) -> str:
    """Return the class of a training image, or its classes with their shares: `ants 0.70`, `bees 0.30`.

    Args:
        target: class id, or (K,) shares.
    """
    if target.ndim == 0:
        return classes[int(target)]
    shares, ids = target.topk(min(2, len(target)))
    mixed = [(classes[index], share) for index, share in zip(ids.tolist(), shares.tolist(), strict=True) if share > 0]
    return mixed[0][0] if len(mixed) == 1 else "\n".join(f"{name} {share:.2f}" for name, share in mixed)


def run_title(run: Run) -> str:
    """Return the name of the run in pictures: that of its experiment and of its folder."""
    return f"{run.config.name}/{run.run_dir.name}"


def write_report(run: Run, end_reason: StopReason, plotter: Plotter | None, *, wall_seconds: float) -> dict[str, float]:
    """Write summary, plots and tables, and score the test split with the best weights; gives the final metrics.

    `plotter` None: no plots are wanted.
    An interrupted run gets its summary only: who sent the signal does not wait, and the run goes on later. So does a
    trial that its search has ended: nobody will look at it closely. Of several processes all score, and rank 0 writes.
    """
    trainer, run_dir, world = run.trainer, run.run_dir, run.trainer.world
    is_done = end_reason not in (StopReason.interrupted, StopReason.pruned)
    best = trainer.best_evaluation or (evaluate_best(run) if is_done else None) or trainer.last_evaluation
    metrics = {f"val/{name}": value for name, value in best.metrics.items()} if best is not None else {}
    if best is not None:
        best.temperature = world.broadcast(best.temperature)  # rank 0 has fitted it
        calibrate(best, trainer.device)
    if is_done and best is not None and world.is_main_process:
        write_split(run, "val", best, run.loaders.val, plotter)
    if is_done:
        metrics |= write_test(run, plotter, best.temperature if best is not None else 1.0)
        if plotter is not None and world.is_main_process:
            is_marked = best is not None and best.average is None and (run_dir / "checkpoints" / BEST).exists()
            best_step = trainer.monitor.best_step if is_marked else None
            plot = partial(plot_curves, title=redact(run_title(run)), best_step=best_step)
            plotter.draw(plot, read_metrics(run_dir / METRICS_JSONL), run_dir / "plots" / CURVES)
    bad = gather_bad_images(run)
    if not world.is_main_process:
        return metrics
    num_skipped = write_skipped(run_dir / "skipped_images.csv", bad)
    if num_skipped:
        log.warning("%d images could not be read and were skipped: %s", num_skipped, run_dir / "skipped_images.csv")

    steady = trainer.timer.after_first_epoch()
    bottleneck = find_bottleneck(steady.loop, steady.data, collect_facts(run), num_steps=trainer.step)
    summary = summarize(run, end_reason, metrics, bottleneck, wall_seconds=wall_seconds, num_skipped=num_skipped)
    if best is not None:
        summary["best"]["average"], summary["calibration"] = best.average, describe_calibration(best)
    write_json(run_dir / "summary.json", summary)
    run.logger.log_summary(summary)
    best_path = run_dir / "checkpoints" / BEST
    if is_done:
        if plotter is not None:
            log_plots(run)
        if best_path.exists():
            run.logger.log_artifact(best_path)
    log_final_results(run, end_reason, best, metrics, wall_seconds=wall_seconds)
    is_wanted = run.config.plots if run.config.report is None else run.config.report
    if is_done and best is not None and is_wanted:
        write_page(run)
    if bottleneck is not None:
        log.info("time: %s", bottleneck.sentence)
    return metrics


def write_page(run: Run) -> None:
    """Write report.html from what the folder has by now; whatever fails is a warning, since the run is done."""
    path = run.run_dir / REPORT
    try:
        write_run_page(path, read_results(run.run_dir, "val", is_own=True), run.splits.val)
        log.info("report: %s", display_path(path))
    except Exception as error:
        log.warning("%s could not be written: %s: %s", path, type(error).__name__, first_line(error))


def gather_bad_images(run: Run) -> dict[str, list[BadImage]]:
    """What could not be read, of all processes, by split; rank 0 gets it."""
    own = {name: loader.bad_images for name, loader in run.loaders.parts().items()}
    merged: dict[str, dict[int, BadImage]] = {name: {} for name in own}
    for part in run.trainer.world.gather(own):
        for name, images in part.items():
            merged[name] |= images
    return {name: list(images.values()) for name, images in merged.items()}


def write_split(run: Run, split: str, evaluation: Evaluation, loader: BatchLoader, plotter: Plotter | None) -> None:
    """Write the tables of a split, and have its plots drawn."""
    classes, title = run.splits.classes, run_title(run)
    maps = partial(mistake_maps, run, evaluation)
    write_evaluation(
        run.run_dir, split, evaluation, loader=loader, classes=classes, plotter=plotter, title=title, heat_maps=maps
    )


def mistake_maps(run: Run, evaluation: Evaluation, images: torch.Tensor, targets: torch.Tensor) -> np.ndarray | None:
    """Return `heat_maps` of the weights that `evaluation` scored, which stay in the model; None if they are gone."""
    trainer, model = run.trainer, run.trainer.ema.model
    best_path = run.run_dir / "checkpoints" / BEST
    if evaluation.step != trainer.step or evaluation.average is not None:
        if not best_path.exists():
            return None
        model.load_state_dict(inference_weights(load_checkpoint(best_path)))
    return heat_maps(model, run.normalizer(images.to(trainer.device)), targets.to(trainer.device))


def log_plots(run: Run) -> None:
    """Hand the pictures of the end to the loggers."""
    step = run.trainer.step
    for split in run.loaders.parts():
        log_evaluation_plots(run.logger, run.run_dir, split, step)
    curves = run.run_dir / "plots" / CURVES
    if curves.exists():
        run.logger.log_image("curves", curves, step)


def write_test(run: Run, plotter: Plotter | None, temperature: float) -> dict[str, float]:
    """Score the test split, if there is one, with the best weights; gives its metrics."""
    if run.loaders.test is None:
        return {}
    tested = score_with_best_weights(run, run.loaders.test, temperature)
    metrics = {f"test/{name}": value for name, value in tested.metrics.items()}
    if run.trainer.world.is_main_process:
        write_split(run, "test", tested, run.loaders.test, plotter)
    run.logger.log_metrics(run.trainer.step, run.trainer.state.finished_epoch, metrics)
    return metrics


def evaluate_best(run: Run) -> Evaluation | None:
    """The evaluation of best.pt again, for a run that went on after a better epoch; None if there is no such file."""
    run.trainer.store.wait()
    found = run.trainer.world.broadcast(describe_best(run))
    if found is None:
        return None
    return replace(score_with_best_weights(run, run.loaders.val, found["temperature"]), **found)


def describe_best(run: Run) -> dict[str, Any] | None:
    """Step, epoch, temperature and average of best.pt; None if it is not there."""
    path = run.run_dir / "checkpoints" / BEST
    if not path.exists():
        return None
    state = load_checkpoint(path)
    position = state["position"]
    return {
        "step": position["step"],
        "epoch": position["epoch"] - (0 if position["batch"] else 1),
        "temperature": state.get("temperature", 1.0),
        "average": state.get("end_share"),
    }


def score_with_best_weights(run: Run, loader: BatchLoader, temperature: float) -> Evaluation:
    """Score a split with the weights that did best on val; the last ones if best.pt is not kept.

    They stay in the model: this comes when training is over.
    """
    trainer = run.trainer
    best_path = run.run_dir / "checkpoints" / BEST
    model = trainer.ema.model
    if trainer.world.is_main_process and best_path.exists():
        model.load_state_dict(inference_weights(load_checkpoint(best_path)))
    trainer.world.broadcast_([*model.parameters(), *model.buffers()])
    trainer.progress.start("scoring", loader.num_images)
    coordinator = build_coordinator(StopSignals(), trainer.world)
    evaluator = replace(trainer.evaluator, normalizer=run.normalizer, coordinator=coordinator, temperature=temperature)
    try:
        return evaluator.evaluate(model, loader.epoch(0))
    finally:
        trainer.progress.close()


def summarize(
    run: Run,
    end_reason: StopReason,
    metrics: dict[str, float],
    bottleneck: Bottleneck | None,
    *,
    wall_seconds: float,
    num_skipped: int,
) -> dict[str, Any]:
    """The content of summary.json."""
    trainer = run.trainer
    times = trainer.timer.read()
    return {
        "name": run.config.name,
        "end_reason": end_reason.value,
        "epochs": trainer.state.epoch,
        "steps": trainer.step,
        "skipped_steps": trainer.state.num_skipped_steps,
        "checkpoint_error": trainer.store.failure,
        "monitor": trainer.monitor.name,
        "best": {"value": trainer.monitor.best, "step": trainer.monitor.best_step, "metrics": metrics},
        "last": trainer.state.metrics,
        "classes": list(run.splits.classes),
        "images": {name: len(source) for name, source in run.splits.parts().items()},
        "skipped_images": num_skipped,
        "data_warnings": list(run.splits.warnings),
        "device": str(trainer.device),
        "precision": precision_name(trainer.dtype),
        "wall_seconds": wall_seconds,
        **trainer.stopwatch.totals(),
        "time": summarize_times(times.loop, times.data, bottleneck, num_workers=run.loaders.train.num_workers),
        "peak_memory_gib": peak_memory_gib(trainer.device),
    }


def describe_origin(best: Evaluation) -> str:
    """Return when the run had the weights of best.pt."""
    if best.average is not None:
        return f"by the average of the start and the end ({best.average:g} of the end)"
    return f"in epoch {best.epoch + 1}" if best.step else "at the start"


def log_final_results(
    run: Run, end_reason: StopReason, best: Evaluation | None, metrics: dict[str, float], *, wall_seconds: float
) -> None:
    """The last words of a run: why it ended, its best figures, and where to find what."""
    trainer = run.trainer
    log.info("done: %s, %d steps in %.1f s", end_reason.value, trainer.step, wall_seconds)
    if best is not None:
        log.info(
            "best: %s %.4f %s | val loss %.4f, accuracy %.4f",
            trainer.monitor.name,
            trainer.monitor.best if trainer.monitor.best is not None else float("nan"),
            describe_origin(best),
            best.metrics["loss"],
            best.metrics["accuracy"],
        )
    if "test/accuracy" in metrics:
        log.info("test: loss %.4f, accuracy %.4f", metrics["test/loss"], metrics["test/accuracy"])
    log.info("results in %s", display_path(run.run_dir))
    if end_reason is StopReason.interrupted:
        log.info("resume it: cvtrain resume=%s", shlex.quote(display_path(run.run_dir)))
    elif (run.run_dir / "checkpoints" / BEST).exists():
        best_path = display_path(run.run_dir / "checkpoints" / BEST)
        log.info("use it: cvtrain predict checkpoint=%s source=PHOTOS", shlex.quote(best_path))
