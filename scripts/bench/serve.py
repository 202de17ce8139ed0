"""Many clients of `cvtrain serve` at once, some of them hostile: failures, memory, latency.

    python scripts/bench/serve.py --checkpoint runs/.../checkpoints/best.pt --photos PHOTOS
    python scripts/bench/serve.py ... --requests 10000 --clients 50 --hostile 0.01

Each client keeps one connection and sends photo after photo. A hostile request goes over a connection of its own: a
bomb of 64,000 x 64,000 pixels, a cut file, text, another type, 100 MB in chunks, a form with HTML for a name, half a
body and then silence or the end. A failure is an answer other than the one that belongs to the request; probabilities
have to be within 1e-4 of those of the photo alone.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BODY_SECONDS = 5
BOUNDARY = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--photos", required=True, help="folder of JPEG files")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--hostile", type=float, default=0.01, help="share of hostile requests")
    options = parser.parse_args()
    command = [sys.executable, "-m", "cvtrain", "serve", f"checkpoint={Path(options.checkpoint).absolute()}", "port=0"]
    process = subprocess.Popen(
        [*command, f"body_seconds={BODY_SECONDS}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        for line in process.stdout or ():
            print(line, end="")
            if found := re.search(r"serving at http://127\.0\.0\.1:(\d+)", line):
                break
        photos = [path.read_bytes() for path in sorted(Path(options.photos).rglob("*.jpg"))[:50]]
        try:
            Bench(int(found[1]), process.pid, photos, options).run()
        finally:
            process.send_signal(signal.SIGTERM)
        print((process.stdout.read() if process.stdout else "").strip())
    print(f"exit code {process.returncode}")


class Bench:
    """The clients of one server."""

    def __init__(self, port: int, pid: int, photos: list[bytes], options: argparse.Namespace) -> None:
        self.port, self.pid, self.photos, self.options = port, pid, photos, options
        self.expected = [self.ask(photo) for photo in photos]
        self.lock = threading.Lock()
        self.num_started = 0
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()
        self.hostile: Counter[str] = Counter()
        self.memory: list[tuple[int, float]] = []

    def run(self) -> None:
        started = time.perf_counter()
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(self.options.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        cuts = statistics.quantiles(self.seconds, n=100)
        print(
            f"{self.options.requests:,} requests of {self.options.clients} clients in {seconds:.0f} s, "
            f"{len(self.seconds) / seconds:.1f} answers/s; p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s"
        )
        print("hostile:", ", ".join(f"{name} {count}" for name, count in sorted(self.hostile.items())))
        print("failures:", dict(self.failures) or "none")
        print("memory, MB after so many requests:", ", ".join(f"{count:,}: {mb:.0f}" for count, mb in self.memory))

    def client(self, number: int) -> None:
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while self.next_request():
            if rng.random() < self.options.hostile:
                connection.close()  # the server ends connections that say nothing for 5 s
                name = rng.choice(sorted(HOSTILE))
                status, data, headers = HOSTILE[name]
                with self.lock:
                    self.hostile[name] += 1
                self.check(name, lambda data=data, headers=headers: self.attack(data(self.photos[0]), headers), status)
                continue
            index = rng.randrange(len(self.photos))
            began = time.perf_counter()
            try:
                connection.request("POST", "/predict", self.photos[index])
                answer = connection.getresponse()
                found = json.loads(answer.read())
                with self.lock:
                    self.seconds.append(time.perf_counter() - began)
                    if answer.status != 200 or not close(found, self.expected[index]):
                        self.failures[f"photo: {answer.status} {str(found)[:80]}"] += 1
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self.lock:
                    self.failures[f"photo: {type(error).__name__}"] += 1
        connection.close()

    def next_request(self) -> bool:
        with self.lock:
            self.num_started += 1
            if self.num_started % max(1, self.options.requests // 10) == 0:
                self.memory.append((self.num_started, resident_mb(self.pid)))
            return self.num_started <= self.options.requests

    def check(self, name: str, attack: Callable[[], int], expected: int) -> None:
        try:
            status = attack()
        except OSError as error:
            status = -1 if expected == 413 else 0  # the server has closed before all was sent
            if expected not in (0, 413):
                name = f"{name} ({type(error).__name__})"
        if status not in (expected, -1):
            with self.lock:
                self.failures[f"{name}: {status}, not {expected}"] += 1

    def attack(self, parts: list[bytes], headers: str) -> int:
        """Send the bytes of a request, and return the status; 0: none came. A last part of b"" ends the sending."""
        with contextlib.closing(socket.create_connection(("127.0.0.1", self.port), 120)) as client:
            client.sendall(f"POST /predict HTTP/1.1\r\nHost: bench\r\n{headers}\r\n".encode())
            for part in parts:
                if not part:
                    return 0
                client.sendall(part)
            head = client.recv(4096)
            return int(head.split()[1]) if head else 0

    def ask(self, photo: bytes) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", photo)
            return json.loads(connection.getresponse().read())


def close(found: dict, expected: dict) -> bool:
    """The same classes, with probabilities within 1e-4; classes of equal probability may change places."""
    probs = [{each["class"]: each["probability"] for each in one.get("predictions", [])} for one in (found, expected)]
    return probs[0].keys() == probs[1].keys() and all(abs(probs[0][k] - p) <= 1e-4 for k, p in probs[1].items())


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 64_000, 64_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def form(data: bytes) -> bytes:
    name = "<img src=x onerror=alert(1)>"
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def length(data: bytes) -> str:
    return f"Content-Length: {len(data)}\r\n"


BOMB, TEXT, CHUNK = bomb(), b"<script>alert(1)</script>", b"100000\r\n" + bytes(1 << 20) + b"\r\n"
CHUNKED, FORM = "Transfer-Encoding: chunked\r\n", f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
# By name: the status that belongs to it (0: the connection ends), the parts of its body, its headers.
HOSTILE: dict[str, tuple[int, Callable[[bytes], list[bytes]], str]] = {
    "bomb": (400, lambda photo: [BOMB], length(BOMB)),
    "text": (400, lambda photo: [TEXT], length(TEXT)),
    "cut": (400, lambda photo: [photo[:2000]], "Content-Length: 2000\r\n"),
    "type": (415, lambda photo: [TEXT], f"Content-Type: text/html\r\n{length(TEXT)}"),
    "100 MB": (413, lambda photo: [CHUNK] * 100, CHUNKED),
    "form": (400, lambda photo: [form(TEXT)], f"{FORM}{length(form(TEXT))}"),
    "silence": (408, lambda photo: [photo[:2000]], "Content-Length: 5000\r\n"),
    "end": (0, lambda photo: [photo[:2000], b""], "Content-Length: 5000\r\n"),
    "no request": (400, lambda photo: [b"\0\1 nonsense\r\n\r\n" * 10], "\r\n \x7f: \r\nContent-Length: a\r\n"),
}

if __name__ == "__main__":
    main()
