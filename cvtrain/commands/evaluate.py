"""The verb `evaluate`: scores a checkpoint on a split, with nothing but the checkpoint and the images."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from cvtrain.checkpoint import CheckpointError, inference_weights, load_checkpoint
from cvtrain.checkpoint.trust import check_ranges, check_sizes, trusted_data, trusted_model
from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.resume import refuse_used_folder
from cvtrain.config.schema.data import (
    CsvConfig,
    DataConfig,
    DatasetConfig,
    FileDataConfig,
    HuggingFaceConfig,
    OwnFilesConfig,
    TorchvisionDataConfig,
)
from cvtrain.config.schema.model import ModelConfig
from cvtrain.config.schema.root import Config, EvaluateConfig, Split
from cvtrain.config.serialize import from_plain
from cvtrain.data.build import build_eval_loader, resolve_resize
from cvtrain.data.images.errors import write_skipped
from cvtrain.data.normalize import Normalizer
from cvtrain.data.sources.build import build_splits
from cvtrain.data.sources.source import Concatenation, ImageSource, Splits
from cvtrain.explain.explanation import heat_maps
from cvtrain.losses import build_criterion
from cvtrain.models.build import BuiltModel, build_model, without_weights
from cvtrain.models.weights import check_checkpointed_weights, load_checkpointed_weights
from cvtrain.report.evaluation import write_evaluation
from cvtrain.report.json_file import write_json
from cvtrain.report.plotter import Plotter
from cvtrain.report.run_report import write_run_metadata
from cvtrain.runtime.console import display_path
from cvtrain.runtime.device import choose_memory_format, select_device
from cvtrain.runtime.lock import unusable_folder
from cvtrain.runtime.precision import backend_flags, precision_name, select_precision
from cvtrain.runtime.progress import build_progress
from cvtrain.training.calibration import describe_calibration
from cvtrain.training.evaluator import Evaluation, Evaluator

log = logging.getLogger(__name__)

# Up to this many classes the log gives the figures of each.
MAX_CLASSES_LOGGED = 20


@dataclass
class EvaluateResult:
    """What `evaluate` gives back. `monitor`: the accuracy, which Hydra's sweepers would optimise."""

    monitor: float
    metrics: dict[str, float]
    evaluation: Evaluation
    run_dir: Path


def evaluate(config: EvaluateConfig, *, run_dir: Path, overrides: list[str] | None = None) -> EvaluateResult:
    """Score a checkpoint on a split of the data that it was trained on, or of other data with the same classes.

    Runs no code that the checkpoint names. On the run's own val split, device and batch size, the figures are
    equal to those that the run logged.

    Raises:
        ConfigError: the checkpoint cannot be used, or the images do not fit its classes.
    """
    refuse_used_folder(run_dir)
    try:
        write_run_metadata(config, run_dir, overrides or [])
    except OSError as error:
        raise unusable_folder(run_dir, error) from error
    path = Path(config.checkpoint)
    state = load_checkpoint(path)
    weights = inference_weights(state)
    check_finite(weights, path)
    trained = read_config(state, path)
    data = override_data(trained.data, config, state.get("paths", {}))
    model_config = trusted_model(trained.model, config)

    device = select_device(config.device, key="device")
    dtype = select_precision(choose_precision(config, state, device.type), device, key="precision")
    classes = tuple(state["classes"])
    source = pick_source(build_splits(data, min_classes=1), classes, config.split)
    loader = build_eval_loader(data, source, device=device, batch_size=config.batch_size)

    built = build_checked(model_config, data, len(classes), weights)
    load_checkpointed_weights(built.module, weights)
    memory_format = choose_memory_format(trained.trainer.channels_last, built.convolutional)
    preprocessing = state["preprocessing"]
    normalizer = Normalizer(tuple(preprocessing["mean"]), tuple(preprocessing["std"]), memory_format)
    log.info(
        "device %s, precision %s, %d images of split %s", device, precision_name(dtype), len(source), config.split.value
    )

    progress = build_progress(True)
    progress.start("evaluating", loader.num_images)
    try:
        with backend_flags(device, dtype, deterministic=trained.trainer.deterministic):
            evaluator = Evaluator(
                criterion=build_criterion(trained.loss, num_classes=len(classes)).to(device),
                normalizer=normalizer.to(device),
                device=device,
                dtype=dtype,
                temperature=read_temperature(state, path),
                flip=trained.trainer.eval_flip if config.eval_flip is None else config.eval_flip,
                on_batch=progress.advance,
            )
            model = built.module.to(device).to(memory_format=memory_format)
            evaluation = evaluator.evaluate(model, loader.epoch(0))
    finally:
        progress.close()
        loader.close()
    split = config.split.value

    def mistaken(images: torch.Tensor, targets: torch.Tensor) -> np.ndarray | None:
        return heat_maps(model, evaluator.normalizer(images.to(device)), targets.to(device))

    write_evaluation(
        run_dir,
        split,
        evaluation,
        loader=loader,
        classes=classes,
        plotter=Plotter(),
        title=display_path(path),
        heat_maps=mistaken,
    )
    num_skipped = write_skipped(run_dir / "skipped_images.csv", {split: loader.bad_images.values()})
    metrics = {f"{split}/{name}": value for name, value in evaluation.metrics.items()}
    summary = {
        "checkpoint": str(path),
        "split": split,
        "images": evaluation.num_images,
        "skipped_images": num_skipped,
        "metrics": metrics,
        "calibration": describe_calibration(evaluation),
        "metrics_in_checkpoint": state.get("metrics", {}),
        "device": str(device),
        "precision": precision_name(dtype),
    }
    write_json(run_dir / "summary.json", summary)
    log_result(metrics, evaluation, num_skipped, classes, run_dir)
    return EvaluateResult(evaluation.metrics["accuracy"], metrics, evaluation, run_dir)


def build_checked(
    config: ModelConfig, data: DataConfig, num_classes: int, weights: Mapping[str, torch.Tensor]
) -> BuiltModel:
    """The network of the checkpoint's config, built only if its weights are of the size that the config claims.

    Raises:
        WeightsError: the weights do not fit the network.
    """

    def build() -> BuiltModel:
        return build_model(
            without_weights(config), num_classes=num_classes, channels=data.channels, image_size=data.image_size
        )

    # On the meta device a network takes no memory, however large it claims to be. Some compute with real numbers
    # while they are built and cannot be tried so (torchvision's regnet); their sizes follow from their names.
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        check_checkpointed_weights(build().module, weights)
    return build()


def read_config(state: dict[str, Any], path: Path) -> Config:
    """Return the typed config that the checkpoint's run had.

    Raises:
        CheckpointError: it has none, or values out of their range.
    """
    if not isinstance(state.get("schemas"), dict):
        raise CheckpointError(path, "incomplete, it lacks schemas")
    config = from_plain(state["config"], state["schemas"])
    saved = state["preprocessing"]
    data = resolve_resize(config.data, saved.get("interpolation"), saved.get("crop_fraction"))
    config = replace(config, data=data)
    check_ranges(config, path)
    return config


def check_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        RunError: it names the first such tensor.
    """
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            num_bad = tensor.numel() - int(tensor.isfinite().sum())
            if num_bad:
                raise RunError(
                    f"{path}: the weights are not finite, so figures of them mean nothing: "
                    f"{num_bad} of {tensor.numel()} numbers of {name} are NaN or infinite\n"
                    "  take an earlier checkpoint: best.pt or step_*.pt of the same run"
                )


def read_temperature(state: Mapping[str, Any], path: Path) -> float:
    """Return the temperature of a checkpoint's probabilities; 1 for one without.

    Raises:
        CheckpointError: it is no positive number.
    """
    temperature = state.get("temperature", 1.0)
    if not isinstance(temperature, float) or not 0 < temperature < float("inf"):
        raise CheckpointError(path, f"damaged: its temperature is {temperature!r}")
    return temperature


def override_data(
    data: DataConfig, config: EvaluateConfig, paths: Mapping[str, str] = MappingProxyType({})
) -> DataConfig:
    """Return the run's data with what the command line says differently, and only what a checkpoint may ask for.

    Args:
        paths: where the run found its relative paths, by key; for an evaluation in another working folder.

    Raises:
        ConfigError: a setting that the run's kind of data does not have, or that has to be named again.
    """
    changes: dict[str, Any] = {}
    wanted = config.data
    for name, value, kind in (
        ("root", wanted.root, FileDataConfig),
        ("file", wanted.file, CsvConfig),
        ("path", wanted.path, HuggingFaceConfig),
        ("download", wanted.download, (HuggingFaceConfig, TorchvisionDataConfig, DatasetConfig)),
        ("image_size", wanted.image_size, DataConfig),
        ("on_bad_image", wanted.on_bad_image, DataConfig),
        ("num_workers", wanted.num_workers, DataConfig),
        ("target", wanted.target, DatasetConfig),
    ):
        if value is None:
            if name in ("root", "file") and isinstance(data, kind):
                changes[name] = found_path(f"data.{name}", getattr(data, name), paths)
            continue
        if not isinstance(data, kind):
            raise ConfigError(
                key=f"data.{name}",
                value=value,
                rule=f"the checkpoint was trained with data={data.name}, which has no such setting",
                remedy=f"leave data.{name} out",
            )
        if hasattr(data, name):
            changes[name] = value
    if isinstance(data, OwnFilesConfig) and data.exclude is not None:
        is_other = wanted.root is not None or wanted.file is not None
        changes["exclude"] = None if is_other else found_path("data.exclude", data.exclude, paths)
    data = trusted_data(replace(data, **changes), config)
    check_sizes(data, config)
    return data


def found_path(key: str, typed: str, paths: Mapping[str, str]) -> str:
    """Return the absolute path of a relative one where the run was, if something is there; else as it was typed."""
    absolute = paths.get(key)
    if not isinstance(absolute, str) or not typed or Path(typed).is_absolute() or not Path(absolute).exists():
        return typed
    if Path(absolute) != Path(typed).absolute():
        log.info("%s=%s of the run is %s", key, typed, absolute)
    return absolute


def choose_precision(config: EvaluateConfig, state: dict[str, Any], device_type: str) -> str:
    """The precision asked for, else the run's own, except fp16 on a CPU, where fp32 takes its place."""
    if config.precision is not None:
        return config.precision.value
    stored = str(state.get("precision", "auto"))
    return "fp32" if stored == "fp16" and device_type == "cpu" else stored


def pick_source(splits: Splits, classes: tuple[str, ...], split: Split) -> ImageSource:
    """The images of `split` under the checkpoint's class ids.

    Raises:
        ConfigError: there is no such split, or it has a class that the model does not know.
    """
    try:
        parts = splits.with_classes(classes).parts()
    except ValueError as error:
        raise ConfigError(key="data", rule=str(error)) from error
    if split is Split.all:
        return Concatenation(list(parts.values()))
    if split.value not in parts:
        raise ConfigError(
            key="split",
            value=split.value,
            rule="the data has no such split",
            remedy=f"it has {', '.join(parts)}; split=all takes all images",
        )
    return parts[split.value]


def log_result(
    metrics: dict[str, float], evaluation: Evaluation, num_skipped: int, classes: tuple[str, ...], run_dir: Path
) -> None:
    """Say the figures, and aloud how many images they leave out."""
    for name, value in metrics.items():
        log.info("%-28s %.4f", name, value)
    if len(classes) <= MAX_CLASSES_LOGGED:
        for name, row in zip(classes, evaluation.per_class, strict=True):
            log.info(
                "%-20s precision %.4f  recall %.4f  f1 %.4f  images %d",
                name,
                row["precision"],
                row["recall"],
                row["f1"],
                row["support"],
            )
    if num_skipped:
        log.warning(
            "%d images could not be read and are not in these figures: %s", num_skipped, run_dir / "skipped_images.csv"
        )
    log.info("results in %s", display_path(run_dir))
