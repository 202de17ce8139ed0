"""Errors of one rank that come from another."""

from cvtrain.config.errors import RunError


class LostProcessError(Exception):
    """Another rank has ended, or cannot be reached; it has reported the reason itself if it could."""


class PeerFailedError(RunError):
    """Another rank has failed, and reports why; collectives still work, so that all can save."""
