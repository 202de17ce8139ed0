"""The body of a request, within limits of size, time and memory; and the image in it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request

# Of a body that is too large, so much is read on, so that a client that writes on sees the answer.
_DRAIN_SECONDS = 1.0
# Types of a body that may be the bytes of an image: curl --data-binary says the third.
_IMAGE_TYPES = ("application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded", "")
# Of multipart, besides the file.
_MULTIPART_SPARE = 64 << 10


class RequestError(Exception):
    """An answer with an error: its HTTP status, and what is wrong."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(message)


class ClientGone(Exception):
    """The client has closed the connection."""


@dataclass
class Limits:
    """What a server takes.

    Attributes:
        max_bytes: of a body.
        memory_bytes: of all bodies that are held at once.
        body_seconds: within which a body has to arrive.
        held_bytes: of the bodies that are held now.
    """

    max_bytes: int
    memory_bytes: int
    body_seconds: float
    held_bytes: int = field(default=0)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Give a function that counts bytes held within; they are given back at the end.

        The function raises RequestError 503 where they would be more than `memory_bytes`.
        """
        own = 0

        def hold(count: int) -> None:
            nonlocal own
            if self.held_bytes + count > self.memory_bytes:
                raise RequestError(503, "too many images are waiting: send it again a little later")
            own += count
            self.held_bytes += count

        try:
            yield hold
        finally:
            self.held_bytes -= own


async def read_image(request: "Request", limits: Limits, hold: Callable[[int], None]) -> bytes:
    """Return the bytes of the image that a request has: its body, or the first file of a multipart form.

    Raises:
        RequestError: 400 no image, 408 too slow, 413 too large, 415 another type, 503 too much at once.
        ClientGone: the client has closed the connection.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not (is_form or kind in _IMAGE_TYPES or kind.startswith("image/")):
        raise RequestError(415, "send the bytes of an image, or multipart/form-data with a file")
    body = await _read_body(request, limits, hold, limits.max_bytes + (_MULTIPART_SPARE if is_form else 0))
    data = await _file_of(request, body) if is_form else body
    if not data:
        raise RequestError(400, "there is no image in the request")
    return data


async def _read_body(request: "Request", limits: Limits, hold: Callable[[int], None], max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    too_large = RequestError(413, f"an image has at most {limits.max_bytes / 1e6:g} MB here")
    if declared.isdecimal() and int(declared) > max_bytes:
        if request.headers.get("expect", "").lower() != "100-continue":
            await _drain(request.receive)
        raise too_large

    async def receive_all() -> bytes:
        body = bytearray()
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            if len(body) + len(part) > max_bytes:
                await _drain(request.receive)
                raise too_large
            hold(len(part))
            body += part
            if not message.get("more_body", False):
                return bytes(body)

    try:
        return await asyncio.wait_for(receive_all(), limits.body_seconds)
    except asyncio.TimeoutError:
        raise RequestError(408, f"the image did not arrive within {limits.body_seconds:g} s") from None


async def _drain(receive: Callable[[], Awaitable[Any]]) -> None:
    """Read on and forget, for a while."""

    async def forget() -> None:
        while (await receive()).get("more_body", False):
            pass

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(forget(), _DRAIN_SECONDS)


async def _file_of(request: "Request", body: bytes) -> bytes:
    """The first file of a multipart form; its name is not looked at."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        form = Request(request.scope, receive).form(max_files=1, max_fields=8, max_part_size=_MULTIPART_SPARE)
        async with form as parts:
            files = [part for part in parts.values() if isinstance(part, UploadFile)]
            return await files[0].read() if files else b""
    except HTTPException as error:
        raise RequestError(400, f"the form cannot be read: {error.detail}") from error
