"""Loggers of a run: files always; TensorBoard, W&B and MLflow by choice."""

from cvtrain.loggers.base import Logger, RunLogger
from cvtrain.loggers.build import build_loggers
from cvtrain.loggers.files import read_metrics

__all__ = ["Logger", "RunLogger", "build_loggers", "read_metrics"]
