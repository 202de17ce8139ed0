"""Writers of the formats: a network to a file."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cvtrain.config.errors import RunError
from cvtrain.config.text import first_line
from cvtrain.export.network import BATCH, ExportNetwork, example_images

# Of these the log keeps warnings only; at INFO they list each step of theirs.
_TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")


def write_onnx(network: ExportNetwork, file: Path, spec: dict[str, Any]) -> None:
    """Write a network as ONNX with a free batch size, and `spec` in its metadata, each entry as JSON.

    By torch's exporter through torch.export. Weights of more than 2 GB, which one file cannot hold, go beside it.

    Raises:
        RunError: the network has something that cannot be exported.
    """
    with _quiet(), _explained("onnx"):
        program: Any = torch.onnx.export(
            network,
            (example_images(network, spec["image_size"]),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=[spec["output"]],
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        )
    program.model.metadata_props.update({f"cvtrain.{key}": json.dumps(value) for key, value in spec.items()})
    program.save(str(file))


def write_pt2(network: ExportNetwork, file: Path, spec: dict[str, Any]) -> None:
    """Write a network as a program of torch.export with a free batch size, and `spec` in its preprocess.json.

    Raises:
        RunError: the network has something that cannot be exported.
    """
    with _quiet(), _explained("pt2"):
        images = example_images(network, spec["image_size"])
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))
    torch.export.save(program, str(file), extra_files={"preprocess.json": json.dumps(spec)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


@contextlib.contextmanager
def _explained(format: str) -> Iterator[None]:
    """Give what the exporters raise, of almost any type, as one line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise RunError(
            f"format={format}: torch cannot export this network: {first_line(cause)[:400]}\n"
            "  a custom network must not branch on values of its images, nor fix the size of a batch"
        ) from error
