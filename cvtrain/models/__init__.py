"""Networks: built by name, fine-tuned by policy, described in numbers."""

from cvtrain.models.build import build_model, without_weights
from cvtrain.models.built import BuiltModel
from cvtrain.models.freeze import set_backbone_trainable, train_mode
from cvtrain.models.summary import ModelSummary, summarize_model
from cvtrain.models.weights import WeightsError, load_checkpointed_weights, load_weights

__all__ = [
    "BuiltModel",
    "ModelSummary",
    "WeightsError",
    "build_model",
    "load_checkpointed_weights",
    "load_weights",
    "set_backbone_trainable",
    "summarize_model",
    "train_mode",
    "without_weights",
]
