"""WiSE-FT: weights between the start and the end of a fine-tuning (Wortsman et al. 2022, arXiv 2109.01903).

The start knows what the pretrained network knew, the end what the training images taught; a mixture is often better
than both, on images like the training images too.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from cvtrain.checkpoint import inference_weights, load_checkpoint
from cvtrain.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from cvtrain.training.trainer import Trainer

log = logging.getLogger(__name__)

START = "start.pt"
# Shares of the end; 0 and 1 were evaluated in the run.
SHARES = (0.25, 0.5, 0.75)


def mix_weights(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """Return (1 - share) * start + share * end; of whole numbers, such as counters, the end's."""
    return {
        name: torch.lerp(start[name].to(tensor), tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in end.items()
    }


def average_with_start(trainer: "Trainer") -> None:
    """Score weights between the start and the end of the run; the best of them become best.pt if they are better.

    The trainer's own weights are those of the end afterwards. A signal ends the scoring.
    """
    model = trainer.ema.model
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = _load_start(trainer, end)
    if start is None:
        return
    found = []
    for share in SHARES:
        model.load_state_dict(mix_weights(start, end, share))
        evaluation = trainer.score()
        if evaluation is None:
            break
        found.append((share, evaluation, evaluation.metrics[trainer.monitor.metric]))
    if len(found) == len(SHARES):
        sign = 1 if trainer.monitor.mode == "max" else -1
        share, evaluation, value = max(found, key=lambda each: sign * each[2])
        shown = ", ".join(f"{value:.4f} at {share:g}" for share, _, value in found)
        log.info("average of the start and the end: %s %s", trainer.monitor.name, shown)
        if trainer.monitor.observe(value, trainer.step):
            evaluation.average = share
            model.load_state_dict(mix_weights(start, end, share))
            trainer.keep_best(evaluation)
    model.load_state_dict(end)
    if trainer.best_evaluation is not None and trainer.best_evaluation.average is not None:
        trainer.save()  # last.pt knows how good best.pt is


def _load_start(trainer: "Trainer", end: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Return the weights that the run started from, on the device; None: they are not there."""
    world, found = trainer.world, None
    trainer.store.wait()
    if world.is_main_process:
        try:
            found = inference_weights(load_checkpoint(trainer.store.folder / START))
        except CheckpointError as error:
            log.warning("trainer.average=wise_ft: nothing to average with: %s", error)
    if not world.broadcast(found is not None):
        return None
    start = {name: (found[name].to(tensor) if found else torch.empty_like(tensor)) for name, tensor in end.items()}
    world.broadcast_(list(start.values()))
    return start
