"""Settings of `cvtrain serve`."""

from dataclasses import dataclass, field
from typing import Optional

from cvtrain.config.schema.data import Reader
from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.model import SavedModelConfig
from cvtrain.config.schema.predict import LOG_LEVELS, Tta
from cvtrain.config.schema.trainer import Precision


@dataclass
class ServeDataConfig:
    reader: Optional[Reader] = setting(None, "library that decodes; null: as the run had it")
    max_image_pixels: int = setting(64_000_000, "images with more pixels are refused", at_least=1)
    image_size: Optional[int] = setting(
        None, "side of the square image that the model sees, in pixels; null: as the run had it", at_least=1
    )


@dataclass
class ServeConfig:
    """`cvtrain serve checkpoint=PATH`: answer images over HTTP."""

    checkpoint: str = required("path of a checkpoint, such as runs/.../checkpoints/best.pt")
    host: str = setting("127.0.0.1", "address to listen at; 0.0.0.0 lets other machines in")
    port: int = setting(8000, "port to listen at; 0: any free one", at_least=0, at_most=65535)
    top_k: int = setting(5, "classes given for each image, unless a request says ?top_k=", at_least=1)
    max_mb: float = setting(20.0, "largest request body, in MB", above=0)
    memory_mb: float = setting(512.0, "bodies held at once, in MB; what is beyond it is asked to come later", above=0)
    body_seconds: float = setting(30.0, "within which a request's body has to arrive", above=0)
    max_connections: int = setting(1000, "connections at once; further ones are asked to come later", at_least=1)
    batch_size: int = setting(16, "most images computed at once; 1: each alone", at_least=1)
    wait_ms: float = setting(3.0, "for which the first image of a batch waits for others, in milliseconds", at_least=0)
    stop_seconds: float = setting(10.0, "that requests have to finish after Ctrl-C or SIGTERM", at_least=0)
    tta: Optional[Tta] = setting(
        None, "none, or flip: average each image and its mirror image; null: as the run had it"
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Optional[Precision] = setting(None, "fp32, bf16, fp16 or auto; null: as the run had it")
    log_level: str = setting("INFO", "level of the console", choices=LOG_LEVELS)
    data: ServeDataConfig = field(default_factory=ServeDataConfig)
    model: SavedModelConfig = field(default_factory=SavedModelConfig)
