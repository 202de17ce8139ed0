"""Published weights: from torch's hub cache, or from their site into it."""

import logging
import pickle
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from cvtrain.config.errors import ConfigError

logger = logging.getLogger(__name__)

# A site that does not answer in this time counts as out of reach; a download may stall no longer than the second.
_CONNECT_SECONDS = 10.0
_STALL_SECONDS = 30.0


def hub_cache() -> Path:
    """The folder that torch keeps published weights in (set by TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch_state(url: str) -> dict[str, torch.Tensor]:
    """The state dict behind `url`, on the CPU: from torch's hub cache if it is there, without touching the network.

    A download is checked against the eight or more hex digits of SHA-256 in the file's name, as torch.hub does.

    Raises:
        ConfigError: not in the cache and not to be had from the network, or the file in the cache is damaged.
    """
    path = hub_cache() / url.rsplit("/", 1)[-1]
    if not path.exists():
        _download(url, path)
    try:
        # Reads the cached file; unlike torch.load it knows the zipped tar files of old.
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(
            key="model.pretrained",
            value=True,
            rule=f"the file of published weights {path} is damaged",
            remedy="delete it, so that the next run fetches it again",
        ) from error


def _download(url: str, path: Path) -> None:
    logger.info("downloading %s to %s", url, path)
    try:
        if not is_reachable(url):
            raise OSError(f"no answer from {url.split('/')[2]} in {_CONNECT_SECONDS:g} s")
        path.parent.mkdir(parents=True, exist_ok=True)
        hash_prefix = path.stem.rsplit("-", 1)[-1]
        with _socket_timeout(_STALL_SECONDS):
            torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # RuntimeError: the hash differs
        raise unavailable(path.name, path.parent, f"{url} failed: {error}") from error


def unavailable(file: str, folder: Path, reason: str) -> ConfigError:
    """The error for published weights that are neither in their cache nor to be had from the network."""
    return ConfigError(
        key="model.pretrained",
        value=True,
        rule=f"{file} is not in the cache {folder}, and downloading it from {reason}",
        remedy=f"put {file} into {folder}, or start from random weights with model.pretrained=false",
    )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its connections without a limit; this is the only one that reaches them."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def is_reachable(url: str) -> bool:
    """True if the site of `url` answers, whatever it answers.

    Raises:
        OSError: it is known at once that it cannot be reached, and why.
    """
    outcome: list[Any] = []

    def ask() -> None:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=_CONNECT_SECONDS):
                outcome.append(True)
        except HTTPError:
            outcome.append(True)
        except OSError as error:
            outcome.append(error)

    # A thread, since neither looking up a name nor trying one address after another obeys the timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_CONNECT_SECONDS)
    if outcome and isinstance(outcome[0], OSError):
        raise outcome[0]
    return bool(outcome)
