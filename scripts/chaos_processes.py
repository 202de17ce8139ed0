"""Processes that train, to be killed: new interpreters, or forks of one that has imported everything already."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

# What a training run imports on its way; imported before the fork, a run starts in a second instead of ten.
PRELOADED = (
    "torch",
    "torchvision.transforms.v2",
    "matplotlib.backends.backend_agg",
    "sklearn.datasets",
    "hydra.main",
    "cvtrain.cli.main",
    "cvtrain.cli.completion",
    "cvtrain.config.composer",
    "cvtrain.config.load",
    "cvtrain.config.resolvers",
    "cvtrain.commands.train",
)
ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.002
KILL_SECONDS = 20


class ColdStart:
    """Each process is a new interpreter: `python -m cvtrain ...`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, arguments: list[str], output: Path, *, folder: Path = ROOT, variables: Mapping[str, str] | None = None
    ) -> int:
        """Start `cvtrain` with these arguments in a process group of its own; gives its process id.

        Args:
            arguments: of the command line.
            output: gets what the process prints, after what is there.
            folder: working folder.
            variables: set in the environment.
        """
        search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cvtrain", *arguments],
                cwd=folder,
                env={**environment(), "PYTHONPATH": search, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._process.pid

    def status(self) -> int | None:
        """Exit status of the process, -9 for a killed one; None: it runs."""
        assert self._process is not None
        return self._process.poll()

    def close(self) -> None:
        """Nothing is left to end."""


class WarmStart:
    """Each process is a fork of a server that has imported everything and started no thread.

    To the system and to the run it is a process like any other: it dies and leaves files behind as one. There is one at
    a time; if it runs when another is started, it is killed.
    """

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._pid: int | None = None
        self._status: int | None = None
        self._unread = b""
        os.set_blocking(self._output().fileno(), False)
        self._receive("ready")

    def start(
        self, arguments: list[str], output: Path, *, folder: Path = ROOT, variables: Mapping[str, str] | None = None
    ) -> int:
        """As `ColdStart.start`."""
        if self._pid is not None and self.status() is None:  # the server waits for it
            os.kill(self._pid, signal.SIGKILL)
            wait_for_end(self, KILL_SECONDS)
        assert self._server.stdin is not None
        request = {
            "arguments": arguments,
            "output": str(output.resolve()),
            "folder": str(folder),
            "variables": dict(variables or {}),
        }
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        self._status = None
        self._pid = self._receive("pid")
        return self._pid

    def status(self) -> int | None:
        """As `ColdStart.status`."""
        if self._status is None:
            answer = self._answer()
            if answer is not None:
                self._status = answer["status"]
        return self._status

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        self._output().close()

    def _receive(self, name: str) -> int:
        while (answer := self._answer()) is None:
            time.sleep(POLL_SECONDS)
        return answer[name]

    def _answer(self) -> dict[str, int] | None:
        """The server's next line, None as long as there is no whole one: a pipe may hand over a part of it."""
        self._unread += self._output().read() or b""
        line, newline, rest = self._unread.partition(b"\n")
        if newline:
            self._unread = rest
            return json.loads(line)
        if self._server.poll() is not None:
            raise RuntimeError(f"the server that forks ended with status {self._server.returncode}")
        return None

    def _output(self) -> IO[bytes]:
        assert self._server.stdout is not None
        return self._server.stdout


def wait_for_end(starter: ColdStart | WarmStart, seconds: float) -> int | None:
    """Exit status of the process that `starter` started last; None if it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while starter.status() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return starter.status()


def environment() -> dict[str, str]:
    """One thread per process: several runs share a machine, and a fork must not inherit threads."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def wait_for_group(group: int, *, seconds: float) -> list[str]:
    """Wait until no process of a process group is left; gives the names of those that are still there after `seconds`.

    Data workers whose run was killed notice it and end by themselves, within 5 s (torch's own interval).
    """
    deadline = time.monotonic() + seconds
    while True:
        left = group_members(group)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def group_members(group: int) -> list[str]:
    """`pid name` of each process of a process group that is alive; Linux only, elsewhere empty."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:
            continue
        state, _, process_group = tail.split()[:3]
        if int(process_group) == group and state not in "ZX":
            members.append(f"{folder.name} {head.partition('(')[2]}")
    return members


def serve() -> int:
    """The server: forks a training process for each line of standard input, and says when and how it ended."""
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    answers = sys.stdout
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_run(**request)
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)
    return 0


def _become_run(arguments: list[str], output: str, folder: str, variables: dict[str, str]) -> NoReturn:
    from cvtrain.cli.main import main

    os.setsid()
    os.chdir(folder)
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    sys.argv = ["cvtrain", *arguments]
    main()
    raise AssertionError("main exits")


if __name__ == "__main__":
    sys.exit(serve())
