"""Settings of `cvtrain export`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.model import SavedModelConfig
from cvtrain.config.schema.predict import LOG_LEVELS, Tta


class ExportFormat(str, Enum):
    onnx = "onnx"
    pt2 = "pt2"
    hf = "hf"


class ExportInput(str, Enum):
    image = "image"
    tensor = "tensor"


class ExportPrecision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@dataclass
class ExportDataConfig:
    """Where the val images of the proof are. Null: where the run had them."""

    root: Optional[str] = setting(None, "another folder of images, laid out like the run's own")
    file: Optional[str] = setting(None, "another manifest, for a run with data=csv")
    path: Optional[str] = setting(
        None, "name or folder of the set, for a data=huggingface checkpoint: a checkpoint never names what to fetch"
    )
    image_size: Optional[int] = setting(
        None, "side of the square image that the model sees, in pixels; null: as the run had it", at_least=1
    )
    target: Optional[str] = setting(
        None, "import path of the Dataset class, for a data=dataset checkpoint: a checkpoint never names code to run"
    )


@dataclass
class ExportConfig:
    """`cvtrain export checkpoint=PATH format=onnx`: the model as a file for other programs, with proof."""

    checkpoint: str = required("path of a checkpoint, such as runs/.../checkpoints/best.pt")
    format: ExportFormat = setting(
        ExportFormat.onnx,
        "onnx, for ONNX Runtime and many others; pt2, a program of torch.export; hf, a folder of "
        "timm and the Hugging Face hub",
    )
    precision: ExportPrecision = setting(
        ExportPrecision.fp32,
        "of the exported weights: fp32, fp16, or int8 (format=onnx), with ranges that training images calibrate",
    )
    input: ExportInput = setting(
        ExportInput.image,
        "image: the model takes the pixels of square images and gives probabilities; tensor: it takes normalised "
        "images and gives logits",
    )
    output: Optional[str] = setting(
        None,
        "folder to make, for the model and what belongs to it; null: export_<format>, or export_<format>_int8",
    )
    overwrite: bool = setting(False, "replace the output if it is an earlier export")
    tta: Optional[Tta] = setting(
        None, "none, or flip: the model averages each image and its mirror image; null: as the run had it"
    )
    proof_images: int = setting(
        256, "val images that the exported model has to answer as cvtrain does; all, if there are fewer", at_least=1
    )
    source: Optional[str] = setting(
        None, "images for the proof in the place of the val images, as for cvtrain predict; without labels"
    )
    max_drop: float = setting(
        0.01, "with fp16 and int8: by how much the accuracy on the proof's images may fall", at_least=0.0, at_most=1.0
    )
    calibration_images: int = setting(128, "with int8: training images that give the ranges of activations", at_least=1)
    log_level: str = setting("INFO", "level of the console", choices=LOG_LEVELS)
    data: ExportDataConfig = field(default_factory=ExportDataConfig)
    model: SavedModelConfig = field(default_factory=SavedModelConfig)
