"""The verb `export`: a checkpoint as a file for other programs, which has answered image files as cvtrain does."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvtrain import __version__
from cvtrain.checkpoint import load_checkpoint
from cvtrain.checkpoint.trust import check_sizes
from cvtrain.classifier import Classifier
from cvtrain.commands.evaluate import override_data, read_config
from cvtrain.commands.load import build_classifier
from cvtrain.config.errors import ConfigError, Problem, RunError
from cvtrain.config.export_paths import MODEL_FILES, PREPROCESS, PROOF, export_folder
from cvtrain.config.schema.export import ExportConfig, ExportFormat, ExportInput, ExportPrecision
from cvtrain.config.schema.predict import Tta
from cvtrain.config.schema.root import Config, EvaluateConfig, EvaluateDataConfig
from cvtrain.config.schema.trainer import Precision
from cvtrain.config.text import display_text
from cvtrain.data.images.errors import BadImageError
from cvtrain.data.images.resize import MAX_ASPECT, PAD_VALUE
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.listing import list_images
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.export import classify
from cvtrain.export.formats import write_onnx, write_pt2
from cvtrain.export.int8 import CALIBRATION_BATCH, quantize_onnx
from cvtrain.export.network import ExportNetwork
from cvtrain.export.proof import Limits, Proof, compare
from cvtrain.export.timm_folder import timm_settings, write_card, write_timm
from cvtrain.export.witness import interrogate, question, spread
from cvtrain.report.json_file import write_json
from cvtrain.runtime.console import display_path
from cvtrain.runtime.files import file_sha256, fsync_dir, remove_temporary_files, temporary_path
from cvtrain.runtime.signals import StopSignals

log = logging.getLogger(__name__)

WRITERS = {"onnx": write_onnx, "pt2": write_pt2}
# In float32 the same numbers are computed in another order.
LIMITS = Limits(difference=1e-4)
HALF_LIMITS, INT8_LIMITS = Limits(agreement=0.995), Limits()
# timm reads by Pillow, whose pixels differ from torch's by 1 here and there.
TIMM_LIMITS = Limits(difference=1e-4, agreement=0.99)
SPEC_VERSION = 1


@dataclass(frozen=True)
class ExportResult:
    """What `export` gives back: the folder that it made, and the proof."""

    folder: Path
    proof: Proof


def export(config: ExportConfig) -> ExportResult:
    """Write the model of a checkpoint for other programs, and prove in a fresh process that it answers alike.

    Runs no code that the checkpoint names. On the CPU, in float32.

    Raises:
        ConfigError: the checkpoint cannot be used, or there are no images for the proof.
        RunError: the network cannot be exported, or the exported model answers otherwise. No folder is left then.
    """
    folder, path = export_folder(config), Path(config.checkpoint)
    state = load_checkpoint(path)
    trained = read_config(state, path)
    settings = _evaluation_of(config)
    size = config.data.image_size or state["preprocessing"]["image_size"]
    check_sizes(replace(trained.data, image_size=size, num_workers=0), settings)
    splits = _splits(config, trained, settings, state)
    classifier = build_classifier(state, trained, settings)
    source = splits.val if splits is not None else _listed_source(config, classifier)
    spec = _spec(config, trained, classifier, state, path)
    for_timm = timm_settings(trained.model, spec) if config.format is ExportFormat.hf else None
    with StopSignals(), _folder_at_the_end(folder) as (files, work):
        witness = question(
            source,
            spread(len(source), config.proof_images),
            has_labels=config.source is None,
            resize=classifier.resize,
            probs=lambda images: _probs(classifier, images),
            folder=work,
        )
        for line in witness.unreadable[:3]:
            log.warning("not in the proof, since it could not be read: %s", line)
        log.info("exporting %s as %s: this can take a minute", display_path(path), config.format.value)
        model_file = files / spec["model"]
        if for_timm is not None:
            write_timm(classifier.module, files, spec, for_timm, half=config.precision is ExportPrecision.fp16)
        else:
            is_int8 = config.precision is ExportPrecision.int8
            written = work / "float.onnx" if is_int8 else model_file
            WRITERS[config.format.value](_network(config, classifier, spec), written, spec)
            if is_int8:
                quantize_onnx(written, model_file, _calibration_batches(config, classifier, spec, splits))
            shutil.copy(classify.__file__, files / "classify.py")
        write_json(files / PREPROCESS, spec)
        log.info("proof: %s images of %s, in a fresh process", f"{len(witness.paths):,}", config.source or "val")
        answers = interrogate(files, witness, work, reads_otherwise=for_timm is not None)
        proof = compare(witness.answers, answers, witness.labels)
        table = proof.lines(model_file.name)
        for line in table:
            log.info("%s", line)
        if failure := proof.failure(_limits(config)):
            raise RunError(
                f"the exported model answers otherwise than the checkpoint: {failure}\n"
                f"  nothing was left in {display_path(folder)}"
            )
        if for_timm is not None:
            write_card(files, spec, for_timm, table)
        write_json(files / PROOF, {**proof.to_json(), "model_sha256": file_sha256(model_file)})
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    usage = "classify.py there runs it" if for_timm is None else "README.md there has the lines that load it"
    log.info("model in %s, %.1f MB; %s", display_path(folder), num_bytes / 1e6, usage)
    return ExportResult(folder, proof)


@contextlib.contextmanager
def _folder_at_the_end(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders beside `folder`: the first takes its place when the block ends well, the other is for work.

    Raises:
        RunError: nothing can be written there.
    """
    temporary = temporary_path(folder)
    files, work, old = temporary / "files", temporary / "work", temporary / "old"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(folder.parent)
        files.mkdir(parents=True)
        work.mkdir()
        yield files, work
        if folder.exists():
            folder.rename(old)
        files.rename(folder)
        fsync_dir(folder.parent)
    except OSError as error:
        cause = error.strerror or error
        raise RunError(f"{display_path(folder)} could not be written: {cause}\n  nothing was left of it") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


# ---------------------------------------------------------------- the model


def _network(config: ExportConfig, classifier: Classifier, spec: dict[str, Any]) -> ExportNetwork:
    return ExportNetwork(
        classifier.module,
        mean=spec["mean"],
        std=spec["std"],
        pixels=config.input is ExportInput.image,
        temperature=spec["temperature"],
        flip=spec["flip"],
        dtype=torch.float16 if config.precision is ExportPrecision.fp16 else torch.float32,
    )


def _limits(config: ExportConfig) -> Limits:
    if config.precision is not ExportPrecision.fp32:
        limits = HALF_LIMITS if config.precision is ExportPrecision.fp16 else INT8_LIMITS
        return replace(limits, drop=config.max_drop)
    return TIMM_LIMITS if config.format is ExportFormat.hf else LIMITS


def _evaluation_of(config: ExportConfig) -> EvaluateConfig:
    """The settings under which `evaluate` would compute what the export has to equal."""
    data = config.data
    return EvaluateConfig(
        checkpoint=config.checkpoint,
        device="cpu",
        precision=Precision.fp32,
        eval_flip=None if config.tta is None else config.tta is Tta.flip,
        data=EvaluateDataConfig(
            root=data.root,
            file=data.file,
            path=data.path,
            image_size=data.image_size,
            target=data.target,
            num_workers=0,
        ),
        model=config.model,
    )


def _spec(
    config: ExportConfig, trained: Config, classifier: Classifier, state: dict[str, Any], path: Path
) -> dict[str, Any]:
    """The content of preprocess.json, which is the model's metadata too."""
    is_image = config.input is ExportInput.image and config.format is not ExportFormat.hf
    resize = classifier.resize
    return {
        "version": SPEC_VERSION,
        "cvtrain": __version__,
        "torch": torch.__version__,
        "checkpoint_sha256": file_sha256(path),
        "format": config.format.value,
        "model": MODEL_FILES[config.format.value],
        "precision": config.precision.value,
        "input": "image" if is_image else "tensor",
        "input_layout": "batch, height, width, channels, uint8"
        if is_image
        else "batch, channels, height, width, float32",
        "output": "probs" if is_image else "logits",
        "classes": [display_text(name) for name in classifier.classes],
        "image_size": classifier.image_size,
        "channels": classifier.channels,
        "alpha_color": list(classifier.alpha_color),
        "bit_depth": getattr(trained.data, "bit_depth", 16),
        "resize": resize.resize,
        "short_side": resize.short_side,
        "max_aspect": MAX_ASPECT,
        "pad_value": PAD_VALUE,
        "interpolation": resize.interpolation,
        "mean": [float(value) for value in state["preprocessing"]["mean"]],
        "std": [float(value) for value in state["preprocessing"]["std"]],
        "temperature": classifier.temperature,
        "flip": trained.trainer.eval_flip if config.tta is None else config.tta is Tta.flip,
    }


def _probs(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """(B, C, S, S) uint8 to probabilities (B, num_classes)."""
    return (classifier.compute(images)[0] / classifier.temperature).softmax(dim=1)


# ---------------------------------------------------------------- the images


def _splits(config: ExportConfig, trained: Config, settings: EvaluateConfig, state: dict[str, Any]) -> Splits | None:
    """The images of the checkpoint's run, under its class ids; None with `source`."""
    if config.source is not None:
        return None
    try:
        data = override_data(trained.data, settings, state.get("paths", {}))
        try:
            return build_splits(data, min_classes=1).with_classes(tuple(state["classes"]))
        except ValueError as error:
            raise ConfigError("data", rule=str(error)) from error
    except ConfigError as error:
        remedy = "data.root=... says where the images are now; source=PHOTOS takes any photos, without an accuracy"
        problem = Problem(rule="an export is proved with the run's val images, and they cannot be had", remedy=remedy)
        raise ConfigError(problems=[*error.problems, problem]) from error


def _listed_source(config: ExportConfig, classifier: Classifier) -> FileSource:
    assert config.source is not None
    listing = list_images(config.source)
    labels = np.zeros(len(listing.paths), np.int64)
    return FileSource(root=listing.root, paths=listing.paths, labels=labels, reader=classifier.reader)


def _calibration_batches(
    config: ExportConfig, classifier: Classifier, spec: dict[str, Any], splits: Splits | None
) -> Iterator[np.ndarray]:
    """Training images as the model takes them; those that cannot be read are left out."""
    assert splits is not None, "config/checks lets no source through"
    squares: list[torch.Tensor] = []
    for index in spread(len(splits.train), config.calibration_images).tolist():
        with contextlib.suppress(BadImageError):
            squares.append(classifier.resize(splits.train.read(index)))
        if len(squares) == CALIBRATION_BATCH:
            yield _as_input(torch.stack(squares), spec)
            squares = []
    if squares:
        yield _as_input(torch.stack(squares), spec)


def _as_input(images: torch.Tensor, spec: dict[str, Any]) -> np.ndarray:
    """(B, C, S, S) uint8 as an exported model takes them."""
    if spec["input"] == "image":
        return images.permute(0, 2, 3, 1).contiguous().numpy()
    mean, std = (torch.tensor(spec[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return ((images / 255 - mean) / std).contiguous().numpy()
