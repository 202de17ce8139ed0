"""`CheckpointError`: why a file cannot be used as a checkpoint."""

from pathlib import Path

from cvtrain.config.errors import ConfigError


class CheckpointError(ConfigError):
    """A file that cannot be used as a checkpoint; the message gives the path, the cause and the remedy."""

    def __init__(self, path: Path, rule: str, remedy: str = "") -> None:
        self.path = path
        self.rule = rule
        self.remedy = remedy
        super().__init__(key="checkpoint", value=path, rule=rule, remedy=remedy)
