"""Where pictures are drawn: in this process, or in one of its own beside the training."""

import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from cvtrain.runtime.signals import SIGNALS

log = logging.getLogger(__name__)

# Writes a picture; of `cvtrain.report.plots`, which loads neither torch nor the rest of a run.
Plot = Callable[..., None]

# How long the process may take over what it has begun, when nobody waits for its pictures.
_END_SECONDS = 2.0


class Plotter:
    """Draws in this process, at once. What cannot be drawn is a warning: a picture is no reason to end a run."""

    def draw(self, plot: Plot, *arguments: Any) -> None:
        """Call `plot` with `arguments`, now or soon; these must not change meanwhile."""
        try:
            plot(*arguments)
        except Exception as error:
            _warn(f"{type(error).__name__}: {error}")

    def finish(self) -> None:
        """Return when everything is drawn."""

    def close(self) -> None:
        """Draw no more; what was not waited for by `finish` may be missing."""


class PlottingProcess(Plotter):
    """Draws in a process of its own, in order, while this one trains.

    Importing matplotlib and drawing take the interpreter for a second or more, and two threads of one process share
    it. Started before torch is imported, the process has matplotlib ready when the first picture is wanted.

    It ends with this process, however that ends. If it fails, pictures are drawn here.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Plot, tuple[Any, ...]]] = []
        self._process: subprocess.Popen[bytes] | None = None
        start = f"import sys; sys.path[:] = {sys.path!r}; from cvtrain.report.plotter import serve; serve()"
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # What goes wrong there is drawn here again, and then told.
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for this process alone
            )

    def draw(self, plot: Plot, *arguments: Any) -> None:
        if self._process is None:
            super().draw(plot, *arguments)
            return
        self._waiting.append((plot, arguments))
        assert self._process.stdin is not None
        try:
            pickle.dump((plot, arguments), self._process.stdin)
            self._process.stdin.flush()
        except OSError:
            self._draw_here()

    def finish(self) -> None:
        while self._process is not None and self._waiting:
            assert self._process.stdout is not None
            try:
                problem = pickle.load(self._process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                self._draw_here()
                return
            self._waiting.pop(0)
            if problem is not None:
                _warn(problem)

    def close(self) -> None:
        process, self._process = self._process, None
        self._waiting.clear()
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _draw_here(self) -> None:
        """The process has ended: draw what it has not."""
        waiting = list(self._waiting)
        self.close()
        for plot, arguments in waiting:
            self.draw(plot, *arguments)


def _warn(problem: str) -> None:
    log.warning("a picture could not be drawn: %s", problem)


def serve() -> None:
    """What a `PlottingProcess` runs: draw what standard input asks for until it ends; answer each with its problem."""
    for number in SIGNALS:  # a batch system sends them to all processes
        signal.signal(number, signal.SIG_IGN)
    from cvtrain.report.figure import prepare_to_draw

    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    with contextlib.suppress(Exception):  # told when a picture is wanted
        prepare_to_draw()
    with contextlib.suppress(BrokenPipeError):  # who asked has ended
        while (request := requests.get()) is not None:
            plot, arguments = request
            problem = None
            try:
                plot(*arguments)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            pickle.dump(problem, replies)
            replies.flush()
    os._exit(0)  # nothing is left to clean up, and somebody waits


def _read(stream: IO[bytes], requests: "queue.SimpleQueue[Any]") -> None:
    """Take requests as they come, so that nobody waits for a pipe while a picture is drawn. None: there are no more."""
    try:
        while True:
            requests.put(pickle.load(stream))
    finally:
        requests.put(None)
