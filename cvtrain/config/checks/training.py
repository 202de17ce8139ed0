"""Rules of groups `optimizer` and `trainer`."""

from collections.abc import Callable, Iterator

from cvtrain.config.errors import Problem
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.schema.optim import MuonConfig, SGDConfig
from cvtrain.config.schema.root import Config
from cvtrain.config.schema.trainer import CompileMode, MonitorMode

# Metrics that evaluation makes, and which way is better. val/top5_accuracy exists above five classes.
MONITORS = {
    "val/accuracy": MonitorMode.max,
    "val/top5_accuracy": MonitorMode.max,
    "val/macro_f1": MonitorMode.max,
    "val/balanced_accuracy": MonitorMode.max,
    "val/loss": MonitorMode.min,
    "val/calibration_error": MonitorMode.min,
}


def monitor_is_measured(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    monitor, mode = config.trainer.monitor, config.trainer.monitor_mode
    if monitor not in MONITORS:
        names = closest(monitor, MONITORS) or closest(f"val/{monitor}", MONITORS)
        remedy = "\n".join(filter(None, [did_you_mean(names), "metrics: " + ", ".join(MONITORS)]))
        yield Problem("trainer.monitor", monitor, "is no metric of evaluation", remedy)
    elif mode not in (MonitorMode.auto, MONITORS[monitor]):
        yield Problem(
            "trainer.monitor_mode",
            mode,
            f"would keep the worst: {monitor} is better at its {MONITORS[monitor].value}",
            "leave it at auto",
        )


def early_stop_is_on(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    trainer = config.trainer
    for key in ("early_stop_min_delta", "early_stop_from_epoch"):
        if trainer.early_stop_patience is None and is_set(f"trainer.{key}"):
            yield Problem(
                f"trainer.{key}",
                getattr(trainer, key),
                "has no effect without trainer.early_stop_patience",
                "set trainer.early_stop_patience, or leave it out",
            )
    if trainer.early_stop_patience is not None and trainer.early_stop_from_epoch > trainer.epochs:
        yield Problem(
            "trainer.early_stop_from_epoch",
            trainer.early_stop_from_epoch,
            f"is behind the end of the run, trainer.epochs={trainer.epochs}: nothing would stop early",
            "set a smaller epoch, or leave early_stop_patience out",
        )


def nesterov_has_momentum(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    optimizer = config.optimizer
    if not isinstance(optimizer, (SGDConfig, MuonConfig)):
        return
    # No question of who set it: torch refuses the pair.
    if optimizer.nesterov and optimizer.momentum == 0:
        yield Problem(
            "optimizer.nesterov",
            True,
            "has no effect with optimizer.momentum=0",
            "set optimizer.momentum=0.9, or optimizer.nesterov=false",
        )


def betas_are_two(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    betas = getattr(config.optimizer, "betas", None)
    if betas is not None and len(betas) != 2:
        yield Problem("optimizer.betas", betas, "must have two values: of the first and of the second moment")


def decay_is_on(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    optimizer = config.optimizer
    if optimizer.decay_norm_and_bias and optimizer.weight_decay == 0 and is_set("optimizer.decay_norm_and_bias"):
        yield Problem(
            "optimizer.decay_norm_and_bias",
            True,
            "has no effect with optimizer.weight_decay=0",
            "set optimizer.weight_decay above 0, or leave it out",
        )


def compile_mode_is_used(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    trainer = config.trainer
    if not trainer.compile and is_set("trainer.compile_mode"):
        yield Problem(
            "trainer.compile_mode",
            trainer.compile_mode,
            "has no effect without trainer.compile",
            "set trainer.compile=true, or leave it out",
        )
    elif trainer.compile_mode is CompileMode.reduce_overhead and trainer.compile and trainer.grad_accum_steps > 1:
        yield Problem(
            "trainer.compile_mode",
            trainer.compile_mode,
            "takes whole batches: a second pass would write over the gradients of the first",
            "set trainer.grad_accum_steps=1, or trainer.compile_mode=default",
        )


def devices_can_share(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    devices, device = config.trainer.devices, config.trainer.device
    is_count = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    if not is_count and devices != "auto":
        yield Problem("trainer.devices", devices, "must be a whole number at least 1, or auto")
        return
    if devices == 1:
        return
    if device not in ("auto", "cpu", "cuda"):
        yield Problem(
            "trainer.device",
            device,
            f"is one device, and trainer.devices={devices} asks for one for each process",
            "use trainer.device=cuda or trainer.device=cpu; CUDA_VISIBLE_DEVICES chooses among GPUs",
        )
    if isinstance(devices, int) and config.data.batch_size < devices:
        yield Problem(
            "data.batch_size",
            config.data.batch_size,
            f"has to be at least trainer.devices={devices}: the processes share each batch",
            "use a larger batch, or fewer processes",
        )


TRAINING_CHECKS = (
    devices_can_share,
    monitor_is_measured,
    early_stop_is_on,
    nesterov_has_momentum,
    betas_are_two,
    decay_is_on,
    compile_mode_is_used,
)
