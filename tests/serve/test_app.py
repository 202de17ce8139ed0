"""The application, through real connections: right answers, and harmless ones to hostile requests."""

import contextlib
import io
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_classifiers import Corners, bright_left, classifier_of
from PIL import Image
from served import BOUNDARY, FORM, form_of, served

from cvtrain.serve.page import PAGE


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side):
    """A PNG of a few bytes that promises side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NAMES = ("<img src=x onerror=alert(1)>", 'right"\x1b[31m')
PHOTO = png(bright_left())


@pytest.fixture(scope="module")
def classifier():
    return classifier_of(Corners(has_map=True), classes=NAMES)


@pytest.fixture(scope="module")
def server(classifier):
    with served(classifier) as started:
        yield started


def test_answers_equal_those_of_the_classifier_to_the_bit(server, classifier):
    rng = np.random.default_rng(0)
    for size in (12, 30, 7):
        photo = png(rng.integers(0, 256, (size, size + 3), dtype=np.uint8))
        expected = classifier.predict(photo, top_k=2)[0]
        found = [
            server.ask("POST", "/predict", photo),
            server.ask("POST", "/predict", photo, **{"Content-Type": "image/png"}),
            server.ask("POST", "/predict", form_of(photo), **FORM),
            server.ask("POST", "/predict", iter([photo[:50], photo[50:]]), **{"Transfer-Encoding": "chunked"}),
        ]
        for status, content, headers in found:
            assert (status, headers["content-type"]) == (200, "application/json")
            assert [each["class"] for each in content["predictions"]] == list(expected.classes)
            assert tuple(each["probability"] for each in content["predictions"]) == expected.probs


def test_images_of_one_batch_get_their_own_answers(classifier):
    images = [png(np.roll(bright_left(), shift, 1)) for shift in range(12)]
    expected = [each.probs[0] for each in classifier.predict(images)]
    with served(classifier, batch_size=8, wait_seconds=0.05) as started, ThreadPoolExecutor(12) as threads:
        for _ in range(3):
            found = list(threads.map(lambda photo: started.ask("POST", "/predict", photo), images))
            probs = [content["predictions"][0]["probability"] for _, content, _ in found]
            np.testing.assert_allclose(probs, expected, rtol=1e-6)


def test_number_of_classes(server):
    for query, count in (("", 2), ("?top_k=1", 1), ("?top_k=99", 2)):
        assert len(server.ask("POST", f"/predict{query}", PHOTO)[1]["predictions"]) == count
    for query in ("0", "-1", "a", "1e3", "9" * 400, "%C2%B2", ""):
        status, content, _ = server.ask("POST", f"/predict?top_k={query}", PHOTO)
        assert (status, content) == (400, {"error": "top_k must be a whole number from 1"})


def test_what_is_served_can_be_asked(server):
    assert server.ask("GET", "/classes")[1] == {"classes": list(NAMES)}
    health = server.ask("GET", "/health")[1]
    assert (health["status"], health["num_classes"], health["image_size"], health["device"]) == ("ok", 2, 12, "cpu")
    assert server.ask("GET", "/openapi.json")[1]["info"]["title"] == "cvtrain"


def test_page_needs_nothing_from_elsewhere_and_shows_text_as_text(server):
    status, page, headers = server.ask("GET", "/")
    assert (status, page) == (200, PAGE)
    assert "://" not in page and "innerHTML" not in page and "document.write" not in page
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


REFUSED = {
    "nothing": (400, "there is no image", b"", {}),
    "text": (400, "not an image in a known format", b"<script>alert(1)</script>", {}),
    "cut": (400, "the image cannot be read", PHOTO[:60], {}),
    "bomb": (400, "64000 x 64000 pixels are more than", bomb(64000), {}),
    "json": (415, "send the bytes of an image", b"{}", {"Content-Type": "application/json"}),
    "html": (415, "send the bytes of an image", PHOTO, {"Content-Type": "text/html; charset=utf-8"}),
    "form without a file": (400, "there is no image", f"--{BOUNDARY}--\r\n".encode(), FORM),
    "form that is none": (400, "", PHOTO, FORM),
    "form without a boundary": (
        400,
        "the form cannot be read",
        form_of(PHOTO),
        {"Content-Type": "multipart/form-data"},
    ),
    "many files": (400, "the form cannot be read", form_of(PHOTO)[: -len(BOUNDARY) - 6] + form_of(PHOTO), FORM),
    "large": (413, "an image has at most 0.2 MB here", bytes(300_000), {}),
    "large form": (413, "an image has at most 0.2 MB here", form_of(bytes(300_000)), FORM),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_bodies_are_refused(server, name):
    status, message, body, headers = REFUSED[name]
    found, content, answered = server.ask("POST", "/predict", body, **headers)
    assert (found, answered["content-type"]) == (status, "application/json")
    assert message in content["error"]
    assert "\x1b" not in content["error"]
    assert server.ask("POST", "/predict", PHOTO)[0] == 200


def test_names_of_files_are_never_repeated(server):
    for name in ("<script>alert(1)</script>.png", "../../etc/passwd", "x" * 500, "\x1b[2J.png"):
        status, content, _ = server.ask("POST", "/predict", form_of(b"no image", name), **FORM)
        assert status == 400
        assert "script" not in content["error"] and "passwd" not in content["error"]
        assert server.ask("POST", "/predict", form_of(PHOTO, name), **FORM)[0] == 200


def test_other_methods_and_places(server):
    assert server.ask("GET", "/predict")[:2] == (405, {"error": "Method Not Allowed"})
    for path in ("/predict/../classes.json", "/static/x", "/docs", "/redoc", "//evil"):
        assert server.ask("GET", path)[0] == 404


def test_an_endless_body_is_cut_off(server):
    with contextlib.closing(server.connect()) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        num_sent = 0
        with contextlib.suppress(ConnectionError):
            while num_sent < 2_000_000_000:
                connection.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                num_sent += 1 << 20
                assert server.limits.held_bytes <= 200_000
        assert num_sent < 2_000_000_000
    assert server.ask("GET", "/health")[0] == 200


def test_expected_large_bodies_are_refused_before_they_are_sent(server):
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_slow_and_silent_clients_are_sent_away(classifier):
    with served(classifier, body_seconds=0.3, head_seconds=0.3) as started:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        sent = {b"": b"", b"POST /pre": b"", head + b"x": b"HTTP/1.1 408"}
        for data, expected in sent.items():
            with socket.create_connection(("127.0.0.1", started.port), 10) as client:
                client.sendall(data)
                found = b""
                while part := client.recv(4096):  # until the server closes
                    found += part
                assert found.startswith(expected) and (found or not expected)
        # A connection that has asked before, and is quick, may ask again.
        with contextlib.closing(started.connect()) as connection:
            for _ in range(3):
                connection.request("POST", "/predict", PHOTO)
                answer = connection.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)


def test_what_is_more_than_the_memory_is_asked_to_come_later(classifier):
    with served(classifier, memory_bytes=200_000) as started:
        with contextlib.ExitStack() as clients:
            for _ in range(2):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", started.port), 10))
                head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 150000\r\n\r\n"
                client.sendall(head + bytes(99_990))
            while started.limits.held_bytes < 199_980:
                threading.Event().wait(0.01)
            status, content, headers = started.ask("POST", "/predict", PHOTO)
            assert (status, headers["retry-after"]) == (503, "1")
            assert "too many images are waiting" in content["error"]
        # They have gone in the middle of their bodies.
        while started.limits.held_bytes:
            threading.Event().wait(0.01)
        assert started.ask("POST", "/predict", PHOTO)[0] == 200


def test_too_many_connections_are_asked_to_come_later(server):
    with contextlib.ExitStack() as clients:
        for _ in range(60):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
        assert server.ask("GET", "/health")[0] == 503
    while server.ask("GET", "/health")[0] != 200:
        threading.Event().wait(0.01)
