"""A real server in a thread of the test, and a real client."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from cvtrain.serve.app import build_app
from cvtrain.serve.body import Limits
from cvtrain.serve.server import build_server, open_socket

BOUNDARY = "cvtrain-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form_of(data: bytes, name: str = "photo.png", field: str = "file") -> bytes:
    """A multipart form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + data + f"\r\n--{BOUNDARY}--\r\n".encode()


@dataclass
class Served:
    """A server's port and limits."""

    port: int
    limits: Limits

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content (JSON is parsed) and headers, by small letters, of one answer."""
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request(
                method, path, body, headers, encode_chunked=headers.get("Transfer-Encoding") == "chunked"
            )
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(content) if "json" in found["content-type"] else content.decode(), found


@contextlib.contextmanager
def served(classifier, *, max_bytes=200_000, memory_bytes=1_000_000, body_seconds=10.0, head_seconds=10.0, **options):
    """A server of `classifier` within; all that it holds is given back at the end."""
    limits = Limits(max_bytes, memory_bytes, body_seconds)
    app = build_app(classifier, limits, **{"top_k": 5, "batch_size": 1, "wait_seconds": 0.0, **options})
    server = build_server(app, max_connections=50, stop_seconds=5, head_seconds=head_seconds)
    opened = open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(opened.getsockname()[1], limits)
    finally:
        server.should_exit = True
        thread.join(20)
        opened.close()
    assert not thread.is_alive()
    assert limits.held_bytes == 0
