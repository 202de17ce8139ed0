"""The verb `predict`: classifies images without labels, a row for each, written part by part."""

import logging
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cvtrain.checkpoint import load_checkpoint
from cvtrain.checkpoint.trust import check_sizes
from cvtrain.classifier import Classifier
from cvtrain.commands.evaluate import read_config
from cvtrain.commands.explain_images import NOTHING, Overlays
from cvtrain.commands.load import build_classifier
from cvtrain.commands.prediction_job import Job, job_identity, new_job, resume_job, save_job
from cvtrain.commands.sort_images import sort_images
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.machine import usable_cores
from cvtrain.config.prediction_paths import JOB, UNSURE, explanations_folder, table_path, unfinished_folder
from cvtrain.config.schema.data import FileDataConfig, Reader
from cvtrain.config.schema.predict import PredictConfig, Tta
from cvtrain.config.schema.root import EvaluateConfig, EvaluateDataConfig
from cvtrain.config.text import display_text, unescape_formula
from cvtrain.data.images.reader import build_reader
from cvtrain.data.loader.batch import Batch, BatchDataset
from cvtrain.data.loader.loader import BatchLoader
from cvtrain.data.loader.num_workers import choose_num_workers
from cvtrain.data.loader.prefetch import one_ahead, prefetch_to_device
from cvtrain.data.loader.sampler import EpochSampler
from cvtrain.data.sources.source import FileSource
from cvtrain.report.prediction_table import PartFiles, Row, columns_of, write_rows
from cvtrain.runtime.console import display_path
from cvtrain.runtime.lock import run_lock
from cvtrain.runtime.precision import precision_name
from cvtrain.runtime.progress import build_progress
from cvtrain.runtime.signals import StopSignals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictResult:
    """What `predict` gives back: the table, its rows, how many of them have an error, and the time that it took.

    `seconds`: from the first image to the finished table.
    """

    table: Path
    num_images: int
    num_errors: int
    seconds: float


def predict(config: PredictConfig) -> PredictResult:
    """Write the most probable classes of each image of `config.source` to `config.output`.

    Runs no code that the checkpoint names, and reads nothing but the source. With the checkpoint's own evaluation
    images, device and batch size, the probabilities equal those of predictions_<split>.csv to the bit.

    Raises:
        ConfigError: the checkpoint cannot be used, there are no images, or the output belongs to something else.
        RunError: the output could not be written; the parts that are complete stay, and resume=auto goes on.
    """
    table = table_path(config.output, config.part)
    folder = unfinished_folder(table)
    path = Path(config.checkpoint)
    identity = job_identity(config, path)
    is_resumed = (folder / JOB).exists() and not config.overwrite
    job = resume_job(folder, identity) if is_resumed else new_job(config, table, folder)
    classifier = load_classifier(config, path)
    with StopSignals(), run_lock(folder, key="output"):
        try:
            if not is_resumed:
                save_job(folder, job, identity)
            result = _predict(config, classifier, job, table, folder)
            (folder / JOB).unlink()  # first: without it, what a kill leaves of the folder counts as nothing
        except OSError as error:
            raise RunError(
                f"{error.filename or table} could not be written: {error.strerror or error}\n"
                f"  complete parts are kept in {display_path(folder)}; the same command with resume=auto goes on"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _predict(config: PredictConfig, classifier: Classifier, job: Job, table: Path, folder: Path) -> PredictResult:
    top_k = min(config.top_k, len(classifier.classes))
    columns = columns_of(
        table.suffix,
        top_k=top_k,
        embeddings=config.embeddings,
        rows=job.rows is not None,
        explanations=config.explain,
    )
    parts = PartFiles(folder, columns, table.suffix)
    loader = _build_loader(config, classifier, job)
    size = -(-config.rows_per_part // loader.batch_size) * loader.batch_size
    num_done = min(parts.num_parts * size, loader.num_images)
    if num_done:
        log.info("going on after %s of %s images", f"{num_done:,}", f"{loader.num_images:,}")
    overlays = None
    if config.explain:
        overlays = Overlays(explanations_folder(table), classifier, config.explain_method.value)
        overlays.start(resumes=num_done > 0)
    progress, started = build_progress(True), time.perf_counter()
    progress.start("predicting", loader.num_images, num_done)
    try:
        waiting: list[Row] = []
        num_new = 0
        for rows in _score(config, classifier, loader, job, num_done // loader.batch_size, top_k, overlays):
            waiting += rows
            num_new += len(rows)
            if len(waiting) == size:
                parts.append(waiting)
                waiting = []
            progress.set_text(f"{num_new / (time.perf_counter() - started):,.0f} images/s")
            progress.advance(len(rows))
        if waiting:
            parts.append(waiting)
    finally:
        progress.close()
        loader.close()
    num_errors = 0

    def counted() -> Iterator[Row]:
        nonlocal num_errors
        for row in parts.rows():
            num_errors += bool(row["error"])
            yield row

    write_rows(table, columns, counted())
    seconds = time.perf_counter() - started
    if config.sort_into is not None:
        preds = (row["pred"] if table.suffix != ".csv" else unescape_formula(row["pred"]) for row in parts.rows())
        classes = [display_text(name) for name in classifier.classes]
        sort_images(job.listing, preds, classes, Path(config.sort_into).expanduser(), config.mode)
    log.info("%s images in %.1f s, %s images/s", f"{num_new:,}", seconds, f"{num_new / max(seconds, 1e-9):,.1f}")
    if num_errors:
        log.warning("%s of %s images could not be read; column error says why", num_errors, loader.num_images)
    log.info("predictions in %s", display_path(table))
    if overlays is not None:
        log.info("explanations in %s", display_path(overlays.folder))
    if job.rows is not None:
        output = shlex.quote(config.output)
        log.info("when all parts are done: cvtrain merge output=%s", output)
    return PredictResult(table, loader.num_images, num_errors, seconds)


# ---------------------------------------------------------------- images to rows


def load_classifier(config: PredictConfig, path: Path) -> Classifier:
    """Return the classifier in the checkpoint at `path`, with what `config` says differently.

    Raises:
        ConfigError: it cannot be used, or not so.
    """
    workers = config.data.num_workers
    settings = EvaluateConfig(
        checkpoint=config.checkpoint,
        batch_size=config.batch_size,
        device=config.device,
        precision=config.precision,
        eval_flip=None if config.tta is None else config.tta is Tta.flip,
        data=EvaluateDataConfig(num_workers=workers, image_size=config.data.image_size),
        model=config.model,
    )
    state = load_checkpoint(path)
    trained = read_config(state, path)
    size = config.data.image_size or state["preprocessing"]["image_size"]
    check_sizes(replace(trained.data, image_size=size, num_workers=workers), settings)
    reader = config.data.reader or (trained.data.reader if isinstance(trained.data, FileDataConfig) else Reader.opencv)
    classifier = build_classifier(state, trained, settings)
    limit = config.data.max_image_pixels or getattr(trained.data, "max_image_pixels", None)
    classifier.reader = build_reader(
        library=reader.value,
        channels=classifier.channels,
        alpha_color=classifier.alpha_color,
        bit_depth=classifier.bit_depth,
        **({} if limit is None else {"max_image_pixels": limit}),
    )
    if config.threshold is not None and UNSURE in classifier.classes:
        raise ConfigError("threshold", config.threshold, f"the model has a class {UNSURE}: it would mean two things")
    if config.embeddings:
        classifier.check_head()
    log.info(
        "device %s, precision %s, batch %d", classifier.device, precision_name(classifier.dtype), classifier.batch_size
    )
    return classifier


def _build_loader(config: PredictConfig, classifier: Classifier, job: Job) -> BatchLoader:
    paths = job.listing.paths
    source = FileSource(
        root=job.listing.root, paths=paths, labels=np.zeros(len(paths), np.int64), reader=classifier.reader
    )
    plan = EpochSampler(len(paths), classifier.batch_size, 0, False)
    workers = config.data.num_workers
    if not isinstance(workers, int):
        workers = choose_num_workers(
            is_in_memory=False,
            num_images=plan.num_images,
            num_batches=plan.num_batches,
            num_cores=usable_cores(),
            on_cpu=classifier.device.type == "cpu",
        ).num_workers
    return BatchLoader(
        dataset=BatchDataset(
            source=source,
            eval_transform=classifier.resize,
            image_size=classifier.image_size,
            channels=classifier.channels,
            seed=0,
        ),
        plan=plan,
        num_workers=workers,
        pin_memory=classifier.device.type == "cuda",
    )


@dataclass(frozen=True)
class _Scored:
    """A batch with the results of its images, on their way to the host."""

    batch: Batch
    ids: torch.Tensor
    probs: torch.Tensor
    embeddings: torch.Tensor
    arrived: torch.cuda.Event | None


def _score(
    config: PredictConfig,
    classifier: Classifier,
    loader: BatchLoader,
    job: Job,
    start_batch: int,
    top_k: int,
    overlays: Overlays | None,
) -> Iterator[list[Row]]:
    """Yield the rows of each batch, in the order of the source."""
    names = [display_text(name) for name in classifier.classes]
    # The device computes the next batch while the rows of this one are made.
    for scored in one_ahead(_compute(classifier, loader, start_batch, top_k, config.embeddings)):
        if scored.arrived is not None:
            scored.arrived.synchronize()
        rows = {bad.index: _bad_row(bad.name, bad.cause) for bad in scored.batch.bad}
        results = zip(
            scored.batch.indices.tolist(),
            scored.ids.tolist(),
            scored.probs.tolist(),
            scored.embeddings.tolist(),
            strict=True,
        )
        for index, ids, probs, embedding in results:
            is_sure = config.threshold is None or probs[0] >= config.threshold
            rows[index] = {
                "path": loader.dataset.source.name(index),
                "pred": names[ids[0]] if is_sure else UNSURE,
                "confidence": probs[0],
                "classes": [names[id] for id in ids],
                "probs": probs,
                "embedding": embedding,
                "error": None,
            }
        for index, row in rows.items():
            row["row"] = index if job.rows is None else int(job.rows[index])
        if overlays is not None:
            images = zip(scored.batch.indices.tolist(), scored.batch.images, scored.ids.tolist(), strict=True)
            for index, pixels, ids in images:
                rows[index] |= overlays.write(rows[index], pixels, ids[0])
        yield [rows[index] for index in sorted(rows)]


def _bad_row(name: str, cause: str) -> Row:
    empty = {"pred": None, "confidence": None, "classes": [], "probs": [], "embedding": None, **NOTHING}
    return {"path": name, **empty, "error": display_text(cause)}


def _compute(
    classifier: Classifier, loader: BatchLoader, start_batch: int, top_k: int, embeddings: bool
) -> Iterator[_Scored]:
    device = classifier.device
    for batch in prefetch_to_device(loader.raw_batches(0, start_batch), device):
        if not len(batch):
            nothing = torch.empty(0, 0)
            yield _Scored(batch, nothing, nothing, nothing, None)
            continue
        logits, features = classifier.compute(batch.images, embeddings=embeddings)
        # Ranked by logit, as evaluation does: probabilities that round to 1 would tie.
        ids = logits.topk(top_k, dim=1).indices
        probs = (logits / classifier.temperature).softmax(dim=1).gather(1, ids)
        is_cuda = device.type == "cuda"
        found = [each.to("cpu", non_blocking=is_cuda) for each in (ids, probs, features)]
        arrived = torch.cuda.current_stream(device).record_event() if is_cuda else None
        yield _Scored(batch, found[0], found[1], found[2], arrived)
