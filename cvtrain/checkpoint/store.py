"""The checkpoints of a run: written beside training, the newest kept, failures logged once."""

import errno
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.file import inspect_checkpoint, link_checkpoint, load_checkpoint, write_snapshot
from cvtrain.checkpoint.metadata import snapshot
from cvtrain.runtime.files import remove_temporary_files

log = logging.getLogger(__name__)

LAST = "last.pt"
BEST = "best.pt"
_NUMBERED = re.compile(r"step_(\d{8,})\.pt")
_REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EACCES: "give the run the right to write there",
    errno.EPERM: "give the run the right to write there",
}


@dataclass
class _Request:
    """A snapshot and the names under which it is still to be written."""

    entries: dict[str, Any]
    names: tuple[str, ...]

    @property
    def step(self) -> int:
        return self.entries["position"]["step"]


class CheckpointStore:
    """Keeps last.pt, best.pt and the newest older ones, step_00001234.pt, in one folder.

    A thread writes, one file at a time, and no failure of it ends the run. A request waits while another is written; a
    newer one for the same name takes its place, so that at most one snapshot for each name waits in memory. What could
    not be written is tried again with the next save, and by `close`.

    Temporary files of processes that were killed are removed from the folder at the start.

    Args:
        folder: made with the first save, if it is not there; the folder around it has to be there.
        keep_last: how many states before that of last.pt are kept as step_*.pt.
    """

    def __init__(self, folder: Path, *, keep_last: int = 0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.failure: str | None = None  # why the newest save failed; None: it did not
        self._num_failures = 0
        self._logged: set[str] = set()  # failures since the last success
        self._last_step: int | None = None  # of the last.pt in the folder, once this process wrote it
        self._full_check = True
        self._waiting: list[_Request] = []
        self._failed: list[_Request] = []
        self._thread: threading.Thread | None = None
        self._idle = threading.Condition()
        for path in remove_temporary_files(folder):
            log.info("%s: removed, its process was killed while writing it", path)

    def save(self, state: dict[str, Any], *, names: tuple[str, ...] = (LAST,)) -> None:
        """Copy `state` as it is now, and let it be written under `names` (last.pt, best.pt) while training continues.

        When this returns, the copy is complete and `state` may change. `failure` and the log have what went wrong.

        Raises:
            SnapshotError: `state` holds what no checkpoint can.
        """
        request = _Request(snapshot(state), names)
        with self._idle:
            self._waiting = [*_without(names, [*self._failed, *self._waiting]), request]
            self._failed = []
            self._start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every request is written, or failed; False if that takes more than `timeout` seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._thread is None, timeout)

    def close(self, timeout: float | None = None) -> bool:
        """`wait`, then try once more to write what could not be written. May be called again."""
        finished = self.wait(timeout)
        with self._idle:
            if finished and self._failed:
                self._waiting, self._failed = self._failed, []
                self._start()
        return self.wait(timeout)

    # ------------------------------------------------------------------ in the thread

    def _start(self) -> None:
        if self._thread is None:
            # Not a daemon: the interpreter's end waits for a checkpoint that is being written.
            self._thread = threading.Thread(target=self._work, name="checkpoints")
            self._thread.start()

    def _work(self) -> None:
        try:
            while True:
                with self._idle:
                    if not self._waiting:
                        return
                    request = self._waiting.pop(0)
                self._save(request)
        finally:
            with self._idle:
                self._thread = None
                self._idle.notify_all()

    def _save(self, request: _Request) -> None:
        # last.pt comes last: what it holds about the best is then true of best.pt, wherever a kill falls.
        todo = sorted(request.names, key=lambda name: name == LAST)
        written: Path | None = None
        try:
            while todo:
                path = self.folder / todo[0]
                self._place(request, path, written)
                written = path
                todo.pop(0)
            if LAST in request.names:
                self._remove_old(request.step)
        except Exception as error:
            self._report_failure(self.folder / (todo or [LAST])[0], error)
            self._keep_for_later(request, todo)
        else:
            self._report_success(request)

    def _place(self, request: _Request, path: Path, written: Path | None) -> None:
        """Make `path` hold the snapshot; `written` holds it already, where it is not None."""

        def keep_previous() -> None:
            if path.name == LAST:
                self._keep_previous(request.step)

        if written is None:
            # the full check is made once: the states of one run differ in numbers only
            self.folder.mkdir(exist_ok=True)
            write_snapshot(path, request.entries, full_check=self._full_check, before_rename=keep_previous)
            self._full_check = False
        else:
            link_checkpoint(written, path, before_rename=keep_previous)
        if path.name == LAST:
            self._last_step = request.step

    def _keep_previous(self, step: int) -> None:
        """Give the last.pt of an earlier step its number, before that of `step` takes its place."""
        last = self.folder / LAST
        if self.keep_last == 0 or not last.exists():
            return
        previous = self._last_step
        if previous is None:
            try:
                previous = inspect_checkpoint(last)["position"]["step"]
            except (CheckpointError, KeyError):
                return  # one that is damaged is not worth keeping
        if previous < step:
            link_checkpoint(last, self.folder / f"step_{previous:08d}.pt")

    def _remove_old(self, step: int) -> None:
        """Keep the newest numbered ones; those from `step` on are of a future that was given up."""
        numbered = numbered_checkpoints(self.folder)
        older = [path for number, path in numbered if number < step]
        for _, path in numbered:
            if path not in older[: self.keep_last]:
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ failures

    def _keep_for_later(self, request: _Request, names: list[str]) -> None:
        """Keep what could not be written, unless something newer for the same name waits."""
        with self._idle:
            newer = tuple(name for waiting in self._waiting for name in waiting.names)
            failed = [*_without(tuple(names), self._failed), _Request(request.entries, tuple(names))]
            self._failed = _without(newer, failed)

    def _report_failure(self, path: Path, error: Exception) -> None:
        cause, remedy = str(error), ""
        if isinstance(error, OSError):
            cause, remedy = error.strerror or cause, _REMEDIES.get(error.errno or 0, "")
        elif isinstance(error, CheckpointError):
            cause = error.rule
        failure = f"{path} could not be saved: {cause}"
        self._num_failures += 1
        if failure not in self._logged:
            self._logged.add(failure)
            kept = (
                f"the one of step {self._last_step} is kept"
                if self._last_step is not None
                else "what was there is kept"
            )
            # Anything but the disk's or the file's fault is a fault of the program and needs its traceback.
            unexpected = None if isinstance(error, (OSError, CheckpointError)) else error
            log.warning(
                "%s\n  %s, training continues, and the next save tries again%s",
                failure,
                kept,
                f"; {remedy}" if remedy else "",
                exc_info=unexpected,
            )
        self.failure = failure

    def _report_success(self, request: _Request) -> None:
        if self._failed:
            return  # the other file is still to be written
        if self.failure is not None:
            log.info(
                "%s: checkpoints are saved again, step %d is on disk (%d could not be)",
                self.folder,
                request.step,
                self._num_failures,
            )
        self.failure, self._num_failures = None, 0
        self._logged.clear()


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The step_*.pt of a folder with their steps, newest first."""
    found = [(_NUMBERED.fullmatch(path.name), path) for path in folder.glob("step_*.pt")]
    return sorted(((int(match[1]), path) for match, path in found if match is not None), reverse=True)


def _without(names: tuple[str, ...], requests: list[_Request]) -> list[_Request]:
    """The requests that are left when `names` are taken out of them."""
    rest = [_Request(request.entries, tuple(n for n in request.names if n not in names)) for request in requests]
    return [request for request in rest if request.names]


class NullStore(CheckpointStore):
    """Stands in for the store in every rank but 0, which writes for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure = None

    def save(self, state: dict[str, Any], *, names: tuple[str, ...] = (LAST,)) -> None:
        """Do nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def close(self, timeout: float | None = None) -> bool:
        return True


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """Return the newest whole checkpoint of `folder`: its path, its content, and what was wrong with newer ones.

    last.pt comes first, then step_*.pt from the newest on, and best.pt, which may be much older, if there is no other.

    Returns:
        None if the folder holds no checkpoint at all.

    Raises:
        CheckpointError: there are some, and none can be used; the message names each and its fault.
    """
    problems: list[str] = []
    for path in (folder / LAST, *(path for _, path in numbered_checkpoints(folder)), folder / BEST):
        if not path.exists():
            continue
        try:
            return path, load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(f"{path} {error.rule}")
    if not problems:
        return None
    raise CheckpointError(folder, "none of its checkpoints can be used", "\n".join(problems))
