"""What a process of a run learns of the others' ends."""

from cvtrain.config.errors import RunError


class LostProcessError(Exception):
    """Another process of the run has ended, or cannot be reached; why, it has said itself if it could."""


class PeerFailedError(RunError):
    """Another process of the run has failed in a way that leaves the others able to talk; it tells why."""
