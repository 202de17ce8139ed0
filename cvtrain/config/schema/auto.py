"""Settings of `cvtrain auto`."""

from dataclasses import dataclass, field
from enum import Enum
from typing import List, Optional

from cvtrain.config.schema.fields import setting
from cvtrain.config.schema.predict import LOG_LEVELS


class Licenses(str, Enum):
    permissive = "permissive"
    any = "any"


@dataclass
class AutoSettings:
    """Which networks are tried."""

    weights: List[str] = setting(
        [],
        "files of pretrained weights: FILE, named like an architecture of timm or torchvision, or ARCH=FILE in quotes",
    )
    models: Optional[List[str]] = setting(
        None,
        "architectures whose published weights are tried; null: a short list, where auto.weights names none; "
        "those that cannot be had are named and left out",
    )
    licenses: Licenses = setting(
        Licenses.permissive, "licences of published weights: permissive (Apache, MIT, BSD), or any"
    )
    max_params_m: Optional[float] = setting(None, "largest network, in million parameters", above=0)
    max_latency_ms: Optional[float] = setting(
        None, "slowest network, in milliseconds for one image on this device", above=0
    )


@dataclass
class AutoConfig:
    """`cvtrain auto data=custom data.root=PHOTOS budget=10m`: choose and train a network within a time."""

    budget: str = setting("10m", "time for all of it: 90s, 10m, 1.5h")
    resume: Optional[str] = setting(
        None, "folder of a stopped `cvtrain auto`, which goes on with the rest of its budget"
    )
    log_level: str = setting("INFO", "level of console and auto.log", choices=LOG_LEVELS)
    auto: AutoSettings = field(default_factory=AutoSettings)
