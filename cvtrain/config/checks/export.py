"""Rules of `export` that need neither the checkpoint nor the images."""

import glob
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.checks.run import checkpoint_exists
from cvtrain.config.errors import Problem
from cvtrain.config.export_paths import MODEL_FILES, PREPROCESS, PROOF, export_folder
from cvtrain.config.imports import install_remedy
from cvtrain.config.prediction_paths import STDIN
from cvtrain.config.schema.export import ExportConfig, ExportFormat, ExportPrecision

# What each format needs: the extra of pyproject.toml and its packages.
PACKAGES = {"onnx": ("export", ("onnx", "onnxscript", "onnxruntime")), "hf": ("timm", ("timm", "safetensors"))}


def packages_are_installed(config: ExportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    extra, packages = PACKAGES.get(config.format.value, ("", ()))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        rule = f"needs {', '.join(packages)}; not installed: {', '.join(missing)}"
        yield Problem("format", config.format, rule, install_remedy(extra, " ".join(missing)))


def folder_is_possible(config: ExportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    folder = export_folder(config)
    if folder.suffix in {Path(name).suffix for name in MODEL_FILES.values()}:
        remedy = f"output={folder.with_suffix('')} makes {folder.with_suffix('') / MODEL_FILES[config.format.value]}"
        yield Problem("output", config.output, "is the name of a file; an export is a folder", remedy)
        return
    if folder.exists() and not folder.is_dir():
        yield Problem("output", folder, "is a file, and an export is a folder", "choose another: output=...")
    elif folder.exists() and any(folder.iterdir()):
        if not ((folder / PROOF).is_file() and (folder / PREPROCESS).is_file()):
            yield Problem("output", folder, "holds something else than an export", "choose another: output=...")
        elif not config.overwrite:
            yield Problem("output", folder, "is there already", "choose another, or set overwrite=true")
    existing = next(path for path in folder.absolute().parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Problem("output", folder, f"nothing can be written in {existing}", "choose another place: output=...")


def input_has_an_effect(config: ExportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.format is ExportFormat.hf and is_set("input"):
        yield Problem(
            "input", config.input, "has no effect with format=hf", "leave it out: timm takes normalised images"
        )


def precision_is_possible(config: ExportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    is_int8 = config.precision is ExportPrecision.int8
    if is_int8 and config.format is not ExportFormat.onnx:
        yield Problem("precision", config.precision, f"needs format=onnx, not {config.format.value}")
    if is_int8 and config.source is not None:
        rule = "needs the run's own images, for ranges and for the accuracy"
        yield Problem("precision", config.precision, rule, "leave source out; data.root=... says where they are now")
    if is_set("calibration_images") and not is_int8:
        yield Problem("calibration_images", config.calibration_images, "has no effect without precision=int8")
    if is_set("max_drop") and config.precision is ExportPrecision.fp32:
        yield Problem("max_drop", config.max_drop, "has no effect with precision=fp32, which has to be equal")


def proof_images_exist(config: ExportConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if config.data.root is not None and not Path(config.data.root).expanduser().is_dir():
        yield Problem("data.root", config.data.root, "no such folder")
    if config.data.file is not None and not Path(config.data.file).expanduser().is_file():
        yield Problem("data.file", config.data.file, "no such file")
    if config.source is None:
        return
    if config.source != STDIN and not Path(config.source).expanduser().exists() and not glob.has_magic(config.source):
        yield Problem("source", config.source, "no such file or folder", f"relative paths start from {Path.cwd()}")
    for key in ("root", "file", "path", "target"):
        if getattr(config.data, key) is not None:
            yield Problem(f"data.{key}", getattr(config.data, key), "has no effect with source", "keep one of them")


EXPORT_CHECKS = (
    checkpoint_exists,
    packages_are_installed,
    folder_is_possible,
    input_has_an_effect,
    precision_is_possible,
    proof_images_exist,
)
