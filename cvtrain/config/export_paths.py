"""The folder that `cvtrain export` makes."""

from pathlib import Path

from cvtrain.config.schema.export import ExportConfig, ExportPrecision

# In every export: its numbers, and what other programs do with an image first.
PROOF, PREPROCESS = "proof.json", "preprocess.json"
MODEL_FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "hf": "model.safetensors"}


def export_folder(config: ExportConfig) -> Path:
    """Return the folder of an export: `output`, else export_onnx export_onnx_int8 or the like in the working folder."""
    precision = "" if config.precision is ExportPrecision.fp32 else f"_{config.precision.value}"
    return Path(config.output or f"export_{config.format.value}{precision}").expanduser()
