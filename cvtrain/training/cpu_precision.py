"""`trainer.precision=auto` on a CPU that has bfloat16: whichever is faster for the network, by real steps."""

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvtrain.config.schema.model import Freeze
from cvtrain.config.schema.root import Config
from cvtrain.config.schema.trainer import Precision
from cvtrain.data.cache.folder import default_folder
from cvtrain.data.normalize import Normalizer
from cvtrain.distributed.process_group import ProcessGroup
from cvtrain.runtime.files import atomic_write
from cvtrain.runtime.precision import has_native_bf16, select_precision
from cvtrain.training.step_speed import STEPS, seconds_per_image

log = logging.getLogger(__name__)

IMAGES = 8
# bf16 has to be this much faster: it costs digits, and what was measured varies.
MARGIN = 1.15
FILE = "precision.json"


def choose_run_precision(
    config: Config,
    model: nn.Module,
    normalizer: Normalizer,
    device: torch.device,
    state: dict[str, Any] | None,
    world: ProcessGroup,
) -> torch.dtype:
    """Return the dtype of a run's matrix products; that of the checkpoint for a resumed run with `auto`.

    On a CPU that multiplies bfloat16 itself, a few steps are timed both ways, once for a network and machine.
    """
    name = config.trainer.precision.value
    if config.trainer.precision is not Precision.auto or device.type != "cpu" or not has_native_bf16(device):
        return select_precision(name, device)
    if state is not None:
        return select_precision("bf16" if state.get("precision") == "bf16" else "fp32", device)
    chosen = "fp32"
    if world.is_main_process:
        shape = (config.data.channels, config.data.image_size, config.data.image_size)
        images = normalizer(torch.zeros(IMAGES, *shape, dtype=torch.uint8))  # in the memory format of the run
        rates = _remembered_rates(model, images, trains_all=config.model.freeze is Freeze.none)
        chosen = "bf16" if rates["bf16"] >= MARGIN * rates["fp32"] else "fp32"
        log.info(
            "precision: %s, by %d steps each way: fp32 %.1f, bf16 %.1f images/s",
            chosen,
            STEPS,
            rates["fp32"],
            rates["bf16"],
        )
    return select_precision(world.broadcast(chosen), device)


def measure_rates(
    model: nn.Module,
    images: torch.Tensor,
    *,
    trains_all: bool,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return images per second in fp32 and bf16, of steps on a copy of `model`.

    Args:
        images: (B, C, S, S) float32, normalised.
        trains_all: forward and backward in training mode; else forward in evaluation mode, as for features.
        now: the clock, in seconds.
    """
    network = copy.deepcopy(model)
    return {
        name: 1 / seconds_per_image(network, images, dtype, trains=trains_all, now=now)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }


def _remembered_rates(model: nn.Module, images: torch.Tensor, *, trains_all: bool) -> Mapping[str, float]:
    """Return the rates that an earlier run has measured for such a network on such a machine, or measure them."""
    path = default_folder() / FILE
    layers = [
        (type(layer).__name__, *(tuple(parameter.shape) for parameter in layer.parameters(recurse=False)))
        for layer in model.modules()
    ]
    subject = (layers, tuple(images.shape), trains_all, torch.__version__, torch.get_num_threads(), _processor())
    key = hashlib.blake2b(repr(subject).encode(), digest_size=16).hexdigest()
    known = _read(path)
    if key not in known:
        known[key] = measure_rates(model, images, trains_all=trains_all)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                json.dump(known, file)
        except OSError as error:
            log.debug("%s could not be written: %s", path, error)
    return known[key]


def _read(path: Path) -> dict[str, Mapping[str, float]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: {name: float(rates[name]) for name in ("fp32", "bf16")} for key, rates in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or damaged: measured again
        return {}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()  # there, since bf16 was found in it
    return next((line for line in lines if line.startswith("model name")), "")
