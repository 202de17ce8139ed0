"""The W&B settings of the environment before a run is opened: mode, key, server, sweep."""

import os
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from cvtrain.config.errors import ConfigError
from cvtrain.config.redact import redact

DEFAULT_PROJECT = "cvtrain"
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
_ONLINE_MODES = ("online", "shared", "run")


@dataclass(frozen=True)
class WandbSession:
    """W&B's settings before a run is opened.

    `offline_reason`: why an online run cannot be, None if it may; `has_key`: False if one is wanted and not there; the
    rest: what the environment has set.
    """

    offline_reason: str | None
    has_key: bool
    in_sweep: bool
    project: str | None
    run_name: str | None
    has_secret_arguments: bool


def check_session(*, mode: str | None, probe_seconds: float) -> WandbSession:
    """Read the environment and W&B's own settings, find a key, try to reach the server.

    Never prompts: without a key the client's own start would wait at the terminal for ever.

    Args:
        mode: the mode that the user's config asks for; None: WANDB_MODE, W&B's settings files, else online.
        probe_seconds: how long to try for a connection. A refused one is known at once here; the client's own start
            would retry for its whole timeout and ten seconds more.

    Raises:
        ConfigError: WANDB_MODE holds no mode.
    """
    mode_in_environment = os.environ.get("WANDB_MODE")
    if mode_in_environment is not None and mode_in_environment not in MODES:
        raise ConfigError(
            "WANDB_MODE",
            mode_in_environment,
            f"an environment variable that must be one of {', '.join(MODES)}",
            "unset WANDB_MODE, or set it to online, offline or disabled",
        )
    import wandb

    settings: Any = wandb.setup(settings=wandb.Settings(silent=True)).settings
    reason, has_key = None, True
    if (mode or settings.mode) in _ONLINE_MODES:
        if mode is not None and settings.mode not in _ONLINE_MODES:
            # The config's mode beats WANDB_MODE, but the search for a key looks at the session's mode only.
            wandb.setup(settings=wandb.Settings(mode=cast(Any, mode)))
        reason = _why_no_key(settings)
        has_key = reason is None
        reason = reason or why_unreachable(settings, seconds=probe_seconds)
    return WandbSession(
        offline_reason=reason,
        has_key=has_key,
        in_sweep=settings.sweep_id is not None,
        project=settings.project,
        run_name=settings.run_name,
        has_secret_arguments=redact(sys.argv) != sys.argv,
    )


def _why_no_key(settings: Any) -> str | None:
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            return f"no API key for {settings.base_url}"
    except wandb.errors.Error as error:
        return f"the API key cannot be used ({error})"
    return None


def why_unreachable(settings: Any, *, seconds: float) -> str | None:
    """None if W&B's server accepts a TCP connection within `seconds`, else what went wrong.

    Args:
        settings: W&B's settings. Behind a proxy nothing is tried: only the client knows the way through it.
        seconds: how long to try; a refusal is tried again after a second.
    """
    if settings.http_proxy or settings.https_proxy or urllib.request.getproxies():
        return None
    url = settings.base_url
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=max(0.1, deadline - time.monotonic())).close()
            return None
        except OSError as error:
            # A server that restarts refuses for a moment.
            if time.monotonic() + 1 > deadline:
                return f"{url} cannot be reached ({error})"
            time.sleep(1)
