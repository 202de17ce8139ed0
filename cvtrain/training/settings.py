"""The loop's numbers, and the reasons why it ends."""

from dataclasses import dataclass
from enum import Enum


class StopReason(str, Enum):
    """Why `fit` returned."""

    epochs = "all epochs done"
    max_steps = "trainer.max_steps reached"
    max_minutes = "trainer.max_minutes reached"
    early_stop = "early stopping: no better monitor"
    pruned = "pruned: its search has no more use for it"
    interrupted = "interrupted"


@dataclass(frozen=True)
class TrainerSettings:
    """Numbers of the loop; meanings and ranges as in the config's group `trainer`."""

    epochs: int
    seed: int = 0
    max_steps: int | None = None
    max_minutes: float | None = None
    grad_accum_steps: int = 1
    clip_grad_norm: float | None = None
    on_nonfinite: str = "stop"
    rollback_lr_factor: float = 0.5
    early_stop_patience: int | None = None
    eval_every_epochs: int = 1
    eval_every_steps: int | None = None
    eval_flip: bool = False
    log_every_steps: int = 20
    save_every_steps: int | None = None
    save_every_minutes: float | None = 10.0
    save_best: bool = True
    aux_loss_weight: float = 0.0
    unfreeze_epoch: int | None = None
    freeze_backbone: bool = False
    compile_mode: str | None = None  # null: not compiled
