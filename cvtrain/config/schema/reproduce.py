"""Settings of `cvtrain reproduce`."""

from dataclasses import dataclass
from typing import Optional

from cvtrain.config.schema.fields import required, setting
from cvtrain.config.schema.predict import LOG_LEVELS


@dataclass
class ReproduceConfig:
    """`cvtrain reproduce RUN`: train a run again, in another folder, and compare."""

    run: str = required("folder of the run; written without run= as a plain word")
    run_dir: Optional[str] = setting(None, "folder of the repetition; null: a new one in output_root")
    output_root: str = setting("runs/reproduce", "folder of all repetitions")
    device: Optional[str] = setting(None, "auto, cpu, cuda, cuda:1, mps; null: as the run had it")
    log_level: str = setting("INFO", "level of console and reproduce.log", choices=LOG_LEVELS)
