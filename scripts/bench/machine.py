"""What benchmarks inside one process share: the machine in words, its clock, and configs as of the command line."""

import os
import platform
from pathlib import Path

import torch

from cvtrain.config.compose import Composer
from cvtrain.config.loading import typed_config
from cvtrain.config.overrides import open_up
from cvtrain.config.root import Config, register_schemas


def compose(*overrides: str) -> Config:
    """The typed, checked config of `cvtrain OVERRIDES`."""
    register_schemas()
    composer = Composer("train", None, None, None)
    tokens = [open_up(token, "train") for token in overrides]
    return typed_config(composer.compose(tokens), composer, tokens)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_machine() -> str:
    """GPU, cores and load, for the first line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else "no GPU, "
    return f"{gpu}{cores} cores of {processor}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
