"""Config of groups `optimizer`, `scheduler` and `loss`."""

from dataclasses import dataclass
from enum import Enum
from typing import Dict, List, Optional

from cvtrain.config.schema.fields import required, setting


class Kernel(str, Enum):
    auto = "auto"
    fused = "fused"
    foreach = "foreach"
    single = "single"


@dataclass
class OptimizerConfig:
    """Settings of every optimizer. `lr` is the peak learning rate; the scheduler multiplies it by a factor per step."""

    name: str = required("name of the optimizer")
    lr: float = setting(1e-3, "learning rate that the schedule's factor 1 stands for", above=0)
    weight_decay: float = setting(0.0, "weight decay (decoupled where the optimizer has it so)", at_least=0)
    decay_norm_and_bias: bool = setting(False, "apply weight decay to norms and biases too")
    norm_and_bias_lr_scale: float = setting(
        1.0, "learning rate of norms, biases and other vectors, as a multiple of what it would be", above=0
    )
    backbone_lr_scale: float = setting(1.0, "learning rate of all but the head, as a multiple of lr", at_least=0)
    layer_decay: Optional[float] = setting(
        None, "factor on the learning rate per layer below the head; null: off", above=0, at_most=1
    )
    kernel: Kernel = setting(
        Kernel.auto,
        "implementation: fused, foreach, single, or auto: fused where there is one, else foreach on an accelerator, "
        "single on the CPU",
    )


@dataclass
class SGDConfig(OptimizerConfig):
    name: str = "sgd"
    lr: float = setting(0.1, "learning rate that the schedule's factor 1 stands for", above=0)
    momentum: float = setting(0.9, "momentum", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's form of momentum")


@dataclass
class MomentsConfig(OptimizerConfig):
    """Settings of the optimizers that keep a first and a second moment of the gradient."""

    betas: List[float] = setting([0.9, 0.999], "decay rates of the two moments", at_least=0, below=1)
    eps: float = setting(1e-8, "added to the denominator", above=0)


@dataclass
class AdamConfig(MomentsConfig):
    name: str = "adam"
    amsgrad: bool = setting(False, "the AMSGrad variant")


@dataclass
class AdamWConfig(AdamConfig):
    name: str = "adamw"
    weight_decay: float = setting(0.01, "decoupled weight decay", at_least=0)


@dataclass
class NAdamConfig(MomentsConfig):
    name: str = "nadam"
    momentum_decay: float = setting(4e-3, "decay of the momentum", at_least=0)
    decoupled_weight_decay: bool = setting(True, "weight decay as in AdamW, not as L2")


@dataclass
class RAdamConfig(MomentsConfig):
    name: str = "radam"
    decoupled_weight_decay: bool = setting(True, "weight decay as in AdamW, not as L2")


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = "rmsprop"
    alpha: float = setting(0.99, "smoothing of the squared gradient", at_least=0, below=1)
    eps: float = setting(1e-8, "added to the denominator", above=0)
    momentum: float = setting(0.0, "momentum", at_least=0, below=1)
    centered: bool = setting(False, "divide by the variance, not by the second moment")


@dataclass
class AdagradConfig(OptimizerConfig):
    name: str = "adagrad"
    lr: float = setting(0.01, "learning rate that the schedule's factor 1 stands for", above=0)
    eps: float = setting(1e-10, "added to the denominator", above=0)
    initial_accumulator: float = setting(0.0, "start of the sum of squares", at_least=0)


@dataclass
class AdadeltaConfig(OptimizerConfig):
    name: str = "adadelta"
    lr: float = setting(1.0, "learning rate that the schedule's factor 1 stands for", above=0)
    rho: float = setting(0.9, "decay of the squared gradient", at_least=0, below=1)
    eps: float = setting(1e-6, "added to the denominator", above=0)


@dataclass
class AdamaxConfig(MomentsConfig):
    name: str = "adamax"
    lr: float = setting(2e-3, "learning rate that the schedule's factor 1 stands for", above=0)


@dataclass
class MuonConfig(OptimizerConfig):
    """Matrices and filters of the hidden layers by Muon, everything else by AdamW with its own learning rate."""

    name: str = "muon"
    lr: float = setting(0.02, "learning rate of what Muon trains", above=0)
    weight_decay: float = setting(0.01, "decoupled weight decay", at_least=0)
    momentum: float = setting(0.95, "momentum", at_least=0, below=1)
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    ns_steps: int = setting(5, "Newton-Schulz iterations", at_least=1)
    adamw_lr: float = setting(1e-3, "learning rate of what AdamW trains", above=0)
    betas: List[float] = setting([0.9, 0.95], "decay rates of AdamW's moments", at_least=0, below=1)
    eps: float = setting(1e-8, "added to AdamW's denominator", above=0)


OPTIMIZER_CONFIGS: Dict[str, type] = {
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "nadam": NAdamConfig,
    "radam": RAdamConfig,
    "rmsprop": RMSpropConfig,
    "adagrad": AdagradConfig,
    "adadelta": AdadeltaConfig,
    "adamax": AdamaxConfig,
    "muon": MuonConfig,
}


@dataclass
class SchedulerConfig:
    """A schedule is a factor on `optimizer.lr`, a pure function of the optimizer step, after a linear warm-up."""

    name: str = required("name of the scheduler")
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up", at_least=0)
    warmup_steps: Optional[int] = setting(None, "steps of linear warm-up, instead of warmup_epochs", at_least=0)
    warmup_start_factor: float = setting(0.01, "factor at the first step of the warm-up", at_least=0, at_most=1)


@dataclass
class ConstantConfig(SchedulerConfig):
    name: str = "constant"


@dataclass
class StepConfig(SchedulerConfig):
    name: str = "step"
    step_epochs: float = setting(30.0, "epochs between two drops", above=0)
    gamma: float = setting(0.1, "factor at each drop", above=0, at_most=1)


@dataclass
class MultiStepConfig(SchedulerConfig):
    name: str = "multistep"
    milestones_epochs: List[float] = setting([30.0, 60.0, 80.0], "epochs of the drops, rising", above=0)
    gamma: float = setting(0.1, "factor at each drop", above=0, at_most=1)


@dataclass
class ExponentialConfig(SchedulerConfig):
    name: str = "exponential"
    gamma: float = setting(0.95, "factor per epoch, applied smoothly per step", above=0, at_most=1)


@dataclass
class LinearConfig(SchedulerConfig):
    name: str = "linear"
    end_factor: float = setting(0.0, "factor at the last step", at_least=0, at_most=1)


@dataclass
class PolynomialConfig(SchedulerConfig):
    name: str = "polynomial"
    power: float = setting(2.0, "power of the decay", above=0)
    end_factor: float = setting(0.0, "factor at the last step", at_least=0, at_most=1)


@dataclass
class CosineConfig(SchedulerConfig):
    name: str = "cosine"
    end_factor: float = setting(0.0, "factor at the last step", at_least=0, at_most=1)


@dataclass
class OneCycleConfig(SchedulerConfig):
    """Smith and Topin's one-cycle policy (cosine form): up from 1/div_factor to 1, down to 1/(div * final_div)."""

    name: str = "onecycle"
    pct_start: float = setting(0.3, "share of the run spent going up", above=0, below=1)
    div_factor: float = setting(25.0, "peak learning rate / first one", at_least=1)
    final_div_factor: float = setting(1e4, "first learning rate / last one", at_least=1)


@dataclass
class PlateauConfig(SchedulerConfig):
    name: str = "plateau"
    factor: float = setting(0.1, "factor at each drop", above=0, below=1)
    patience: int = setting(
        5, "evaluations in a row without a better trainer.monitor that are put up with before a drop", at_least=0
    )
    threshold: float = setting(1e-4, "smallest change that counts as better, as a share of the best value", at_least=0)
    min_factor: float = setting(0.0, "the factor goes no lower", at_least=0, at_most=1)


SCHEDULER_CONFIGS: Dict[str, type] = {
    "constant": ConstantConfig,
    "step": StepConfig,
    "multistep": MultiStepConfig,
    "exponential": ExponentialConfig,
    "linear": LinearConfig,
    "polynomial": PolynomialConfig,
    "cosine": CosineConfig,
    "onecycle": OneCycleConfig,
    "plateau": PlateauConfig,
}


@dataclass
class LossConfig:
    """Settings of every loss."""

    name: str = required("name of the loss")
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", at_least=0, below=1)


@dataclass
class CrossEntropyConfig(LossConfig):
    name: str = "cross_entropy"


@dataclass
class FocalConfig(LossConfig):
    """Cross entropy times (1 - p)^gamma (Lin et al. 2017)."""

    name: str = "focal"
    gamma: float = setting(2.0, "power that plays down well-classified samples; 0: cross entropy", at_least=0)


@dataclass
class BCEConfig(LossConfig):
    """One binary cross entropy per class (Wightman et al. 2021), for soft and mixed targets."""

    name: str = "bce"


LOSS_CONFIGS: Dict[str, type] = {
    "cross_entropy": CrossEntropyConfig,
    "focal": FocalConfig,
    "bce": BCEConfig,
}
