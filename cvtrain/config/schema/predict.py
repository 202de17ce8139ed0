"""Settings of `cvtrain predict` and `cvtrain merge`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional, Union

from cvtrain.config.schema.data import Reader
from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.model import SavedModelConfig
from cvtrain.config.schema.trainer import Precision

# Plain strings, since logging takes no enum.
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Tta(str, Enum):
    """Test-time augmentation: the mean of the logits of several versions of each image."""

    none = "none"
    flip = "flip"


class SortMode(str, Enum):
    link = "link"
    copy = "copy"
    move = "move"


class ExplainMethod(str, Enum):
    gradcam = "gradcam"
    hirescam = "hirescam"
    occlusion = "occlusion"


class PredictResume(str, Enum):
    auto = "auto"


@dataclass
class PredictDataConfig:
    num_workers: Union[int, str] = setting("auto", "processes that read images; 0: this one")
    reader: Optional[Reader] = setting(None, "library that decodes; null: as the run had it")
    max_image_pixels: Optional[int] = setting(
        None, "images with more pixels count as unreadable; null: as the run had it", at_least=1
    )
    image_size: Optional[int] = setting(
        None, "side of the square image that the model sees, in pixels; null: as the run had it", at_least=1
    )


@dataclass
class PredictConfig:
    """`cvtrain predict checkpoint=PATH source=PHOTOS`: classify images without labels."""

    checkpoint: str = required("path of a checkpoint, such as runs/.../checkpoints/best.pt")
    source: str = required("a folder, an image, 'photos/**/*.jpg', a list.txt or list.csv of paths, or - for stdin")
    output: str = setting("predictions.csv", "table to write: .csv, .jsonl or .parquet")
    top_k: int = setting(5, "classes given for each image, the most probable first", at_least=1)
    threshold: Optional[float] = setting(
        None, "a less probable class is written as unsure, 0 to 1; null: no such limit", at_least=0.0, at_most=1.0
    )
    embeddings: bool = setting(False, "write what the network's head receives, too")
    explain: bool = setting(
        False, "write a picture of where the network looked for each image, and what the map is worth"
    )
    explain_method: ExplainMethod = setting(ExplainMethod.gradcam, "with explain: gradcam, hirescam or occlusion")
    tta: Optional[Tta] = setting(
        None, "none, or flip: average each image and its mirror image; null: as the run had it"
    )
    resume: Optional[PredictResume] = setting(
        None, "auto: go on with this output where a stopped command left it, or start; null: start"
    )
    overwrite: bool = setting(False, "replace the output if it is there, and drop what a stopped command left")
    part: Optional[str] = setting(
        None, "i/n: only part i of n, from 1, by a hash of the path; cvtrain merge joins the parts"
    )
    sort_into: Optional[str] = setting(None, "folder in which images are put into a folder per class, at the end")
    mode: SortMode = setting(SortMode.link, "with sort_into: link, copy or move")
    yes: bool = setting(False, "confirms mode=move")
    path_column: str = setting("path", "column of a list.csv that has the paths")
    batch_size: Optional[int] = setting(None, "images per batch; null: as the run's evaluation had it", at_least=1)
    rows_per_part: int = setting(
        1024, "rows written at once, whole batches; a command that is killed loses no more", at_least=1
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Optional[Precision] = setting(None, "fp32, bf16, fp16 or auto; null: as the run had it")
    log_level: str = setting("INFO", "level of the console", choices=LOG_LEVELS)
    data: PredictDataConfig = field(default_factory=PredictDataConfig)
    model: SavedModelConfig = field(default_factory=SavedModelConfig)


@dataclass
class MergeConfig:
    """`cvtrain merge output=predictions.csv`: join the parts that `part=i/n` made."""

    output: str = setting("predictions.csv", "the table to write, as each part's command named it")
    overwrite: bool = setting(False, "replace the output if it is there")
