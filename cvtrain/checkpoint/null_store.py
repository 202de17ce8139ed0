"""The checkpoints of a run as a process sees them that does not write them."""

from pathlib import Path
from typing import Any

from cvtrain.checkpoint.store import LAST, CheckpointStore


class NullStore(CheckpointStore):
    """What stands in for the store in all processes of a run but rank 0, which writes for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure = None

    def save(self, state: dict[str, Any], *, names: tuple[str, ...] = (LAST,)) -> None:
        """Nothing to do."""

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def close(self, timeout: float | None = None) -> bool:
        return True
