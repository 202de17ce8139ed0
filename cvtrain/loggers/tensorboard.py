"""TensorBoard event files in the run folder's `tensorboard/`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvtrain.config.serialize import flatten
from cvtrain.loggers.base import Logger


class TensorBoardLogger(Logger):
    """Scalars, pictures and the config as a table, for `tensorboard --logdir runs`.

    Event files are only added to: after a rewind, points are drawn over the old ones of their step.

    Args:
        run_dir: the run folder.
        config: nested plain values, without secrets.
        flush_seconds: seconds between two flushes to disk.
        resume_step: of a resumed run, the step of its checkpoint: points after it are hidden. None: a new run.
    """

    name = "tensorboard"

    def __init__(
        self, *, run_dir: Path, config: Mapping[str, Any], flush_seconds: int = 30, resume_step: int | None = None
    ) -> None:
        # About a second, so only for runs that use it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            log_dir=str(run_dir / "tensorboard"),
            flush_secs=flush_seconds,
            purge_step=None if resume_step is None else resume_step + 1,
        )
        if resume_step is None:
            self._writer.add_text("config", _markdown_table(flatten(config)), global_step=0)
        self._writer.flush()

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), global_step=step)
        self._writer.add_scalar("epoch", epoch + 1, global_step=step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, global_step=step, dataformats="HWC")

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._writer.add_text("summary", _markdown_table(flatten(values)))

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def _markdown_table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| name | value |", "| --- | --- |", *rows])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
