"""The server around the application: its socket, its signals, and connections that say nothing."""

import asyncio
import errno
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

from cvtrain.config.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

# Within which a connection has to send the head of a request.
HEAD_SECONDS = 10.0
_NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
LOCAL = ("127.0.0.1", "localhost", "::1")


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket bound to `host` and `port`, before anything slow is loaded.

    Raises:
        ConfigError: the address is none of this machine's, or the port is in use or not allowed.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError("host", host, "is no address", "127.0.0.1 is for this machine alone") from error
    opened = socket.socket(family, kind, number)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)  # an address that another listens at fails here, if not before
    except PermissionError as error:
        opened.close()
        raise ConfigError("port", port, "needs the rights of an administrator", "take one from 1024 on") from error
    except OSError as error:
        opened.close()
        if error.errno in _NO_ADDRESS:
            raise ConfigError("host", host, "is no address of this machine", "127.0.0.1 or 0.0.0.0") from error
        raise ConfigError("port", port, f"is in use at {host}", "take another: port=8001; port=0 finds one") from error
    return opened


def url_of(opened: socket.socket, host: str) -> str:
    """Return the address of the page."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{opened.getsockname()[1]}"


def run_server(
    app: "FastAPI",
    opened: socket.socket,
    *,
    max_connections: int,
    stop_seconds: float,
    head_seconds: float = HEAD_SECONDS,
) -> None:
    """Answer until Ctrl-C or SIGTERM; requests that have begun get `stop_seconds` to finish."""
    server = build_server(app, max_connections=max_connections, stop_seconds=stop_seconds, head_seconds=head_seconds)
    # uvicorn raises the signals again when it has ended: here that is the end that was asked for.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(server.serve(sockets=[opened]))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def build_server(app: "FastAPI", *, max_connections: int, stop_seconds: float, head_seconds: float) -> Any:
    """Return a `uvicorn.Server` of the application."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes connections whose request has not begun `head_seconds` after its first byte, or after connecting.

        uvicorn itself closes connections that say nothing after an answer.
        """

        waits: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self.unwatch()
            elif self.waits is None:
                self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self.unwatch()
            super().connection_lost(exc)

        def watch(self) -> None:
            self.waits = self.loop.call_later(head_seconds, self.close_if_silent)

        def unwatch(self) -> None:
            if self.waits is not None:
                self.waits.cancel()
                self.waits = None

        def close_if_silent(self) -> None:
            self.waits = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each request that is none
    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(stop_seconds)),
    )
    return uvicorn.Server(config)


def _ignore(number: int, frame: Any) -> None:
    """Takes a signal that has been acted on."""
