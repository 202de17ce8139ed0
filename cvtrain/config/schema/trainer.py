"""Config of `trainer` and `checkpoint`: the loop, the device, and what it keeps."""

from dataclasses import dataclass
from enum import Enum
from typing import Optional, Union

from cvtrain.config.schema.fields import setting


class Precision(str, Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class OnNonfinite(str, Enum):
    stop = "stop"
    skip = "skip"
    rollback = "rollback"


class MonitorMode(str, Enum):
    auto = "auto"
    max = "max"
    min = "min"


class Average(str, Enum):
    none = "none"
    wise_ft = "wise_ft"


class CompileMode(str, Enum):
    default = "default"
    reduce_overhead = "reduce_overhead"
    max_autotune = "max_autotune"


@dataclass
class TrainerConfig:
    epochs: int = setting(
        20,
        "passes over the training images; with resume=PATH, +N means N more than the run had; 0: none, the head's "
        "start is all",
        at_least=0,
    )
    max_steps: Optional[int] = setting(None, "end after this many optimizer steps", at_least=1)
    min_steps: Optional[int] = setting(
        None,
        "halve data.batch_size, down to 8, while the epochs have fewer optimizer steps than this; null: leave it. "
        "recipe=finetune sets 300 unless data.batch_size is set",
        at_least=1,
    )
    max_minutes: Optional[float] = setting(None, "end after this many minutes of wall time", above=0)
    limit_train_batches: Optional[int] = setting(None, "batches per training epoch; null: all", at_least=1)
    limit_val_batches: Optional[int] = setting(None, "batches per evaluation; null: all", at_least=1)
    devices: Union[int, str] = setting(
        1,
        "processes of this machine that train together, one GPU each; auto: one for each GPU. torchrun starts them too",
    )
    sync_batchnorm: bool = setting(False, "with several GPUs, batch norm over the whole batch, not each one's share")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps; auto takes the best that is there")
    precision: Precision = setting(
        Precision.auto,
        "auto: bf16 on GPUs that have it natively, and on CPUs that have it where a few steps are faster, else fp32; "
        "or fp32, bf16, fp16",
    )
    channels_last: Optional[bool] = setting(None, "memory layout NHWC; null: for convolutional nets")
    compile: bool = setting(
        False, "compile the training step's model with torch.compile, which takes a minute and more in the first step"
    )
    compile_mode: CompileMode = setting(
        CompileMode.default,
        "default; reduce_overhead: each step as one CUDA graph, for small networks; max_autotune: tries kernels out",
    )
    deterministic: bool = setting(False, "only deterministic kernels, at some cost in speed")
    grad_accum_steps: int = setting(1, "micro-batches that batch_size is split into", at_least=1)
    clip_grad_norm: Optional[float] = setting(None, "largest L2 norm of the gradient; null: off", above=0)
    ema_decay: Optional[float] = setting(
        None, "decay of the EMA of the weights, which is evaluated and saved; null: off", above=0, below=1
    )
    average: Average = setting(
        Average.none,
        "at the end: none; wise_ft: weights between the start and the end are evaluated too, for best.pt",
    )
    calibrate: bool = setting(
        True, "fit on val the temperature that makes probabilities honest; predict, evaluate and export apply it"
    )
    eval_flip: bool = setting(
        False, "evaluate the mean of the logits of each image and of its mirror image; it takes twice as long"
    )
    early_stop_patience: Optional[int] = setting(
        None, "evaluations without a better monitor before the run ends; null: off", at_least=1
    )
    early_stop_from_epoch: int = setting(
        1, "first epoch whose evaluations count for early_stop_patience, such as the one after the warm-up", at_least=1
    )
    early_stop_min_delta: float = setting(0.0, "smallest change of the monitor that counts as better", at_least=0)
    monitor: str = setting("val/accuracy", "metric that best.pt, early stopping and plateau follow")
    monitor_mode: MonitorMode = setting(MonitorMode.auto, "max or min is better; auto: min for losses and errors")
    eval_at_start: bool = setting(
        False, "evaluate before the first step too, so that best.pt is never worse than the start"
    )
    eval_every_epochs: int = setting(
        1, "epochs between two evaluations; the last epoch is always evaluated", at_least=1
    )
    eval_every_steps: Optional[int] = setting(
        None, "steps between two evaluations, besides those by epochs", at_least=1
    )
    log_every_steps: int = setting(20, "steps between two logged points", at_least=1)
    on_nonfinite: OnNonfinite = setting(
        OnNonfinite.stop,
        "loss or gradient not finite: stop the run, skip that step, or rollback to the last checkpoint with a smaller "
        "learning rate; the batch's names are saved",
    )
    rollback_lr_factor: float = setting(0.5, "factor on the learning rate at each rollback", above=0, below=1)
    overfit_one_batch: bool = setting(
        False, "train and evaluate on the first batch only, to see that the model can learn"
    )
    progress: bool = setting(True, "a live progress bar where the output is a terminal")


@dataclass
class CheckpointConfig:
    """last.pt is saved at every evaluation, on a signal and at the end; these add to that."""

    every_steps: Optional[int] = setting(None, "steps between two saves of last.pt; null: not by steps", at_least=1)
    every_minutes: Optional[float] = setting(
        10.0, "minutes between two saves of last.pt; null: not by the clock", above=0
    )
    keep_last: int = setting(
        1, "states before that of last.pt that are kept as step_<step>.pt, to fall back on", at_least=0
    )
    save_best: bool = setting(True, "keep best.pt, the best by trainer.monitor")
