"""Checkpoints: one file with everything that a run needs to resume, or that a stranger needs to use the model.

A checkpoint is a dict of tensors and plain values, so `torch.load(path, weights_only=True)` reads it and nothing in it
can run code. At its end is a checksum of all of it. Writing leaves the old file or the new one, whatever happens.
"""

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.file import inspect_checkpoint, load_checkpoint, save_checkpoint
from cvtrain.checkpoint.metadata import SnapshotError, inference_weights, snapshot
from cvtrain.checkpoint.store import BEST, LAST, CheckpointStore, NullStore, latest_checkpoint

__all__ = [
    "BEST",
    "LAST",
    "CheckpointError",
    "CheckpointStore",
    "NullStore",
    "SnapshotError",
    "inference_weights",
    "inspect_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "snapshot",
]
