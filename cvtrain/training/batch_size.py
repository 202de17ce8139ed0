"""`fit_batch_size`: smaller batches where a run on few images would end after a handful of steps."""

import logging
from dataclasses import replace
from typing import Any

from cvtrain.config.schema.root import Config

log = logging.getLogger(__name__)

SMALLEST = 8


def fit_batch_size(config: Config, num_images: int, state: dict[str, Any] | None, *, world_size: int = 1) -> Config:
    """Return `config` with the batch size that the run trains with; evaluations keep the one that was set.

    `data.batch_size` is halved, down to 8 and to two images per process, while the epochs have fewer steps than
    `trainer.min_steps`. A resumed run keeps its own.

    Args:
        num_images: of the training split.
        state: checkpoint to resume from.
    """
    size = config.data.batch_size
    if state is not None:
        size = state.get("batch_size", size)
    elif config.trainer.min_steps is not None:
        while (
            size >= 2 * max(SMALLEST, 2 * world_size)
            and config.trainer.epochs * -(-num_images // size) < config.trainer.min_steps
        ):
            size //= 2
    if size == config.data.batch_size:
        return config
    if state is None:
        log.info(
            "batch: %d images, not %d: %d epochs of %d images have fewer than trainer.min_steps=%d steps otherwise",
            size,
            config.data.batch_size,
            config.trainer.epochs,
            num_images,
            config.trainer.min_steps,
        )
    evaluated = config.data.eval_batch_size or config.data.batch_size
    return replace(config, data=replace(config.data, batch_size=size, eval_batch_size=evaluated))
