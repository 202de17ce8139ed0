"""Progress of a run: a live bar in a terminal, a line a minute elsewhere, and a row of a table per epoch."""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cvtrain.runtime.console import get_console

if TYPE_CHECKING:
    from rich import progress as rich_progress


log = logging.getLogger(__name__)

# Between two lines about a pass that takes long, where there is no live bar.
LINE_SECONDS = 60.0


class Progress:
    """How far a pass over images has come; a no-op, for runs that show nothing."""

    def start(self, title: str, total_images: int, done_images: int = 0) -> None: ...
    def advance(self, num_images: int) -> None: ...
    def set_text(self, text: str) -> None: ...
    def close(self) -> None: ...


class LineProgress(Progress):
    """Logs a line a minute, for pipes and files; a pass that takes less time has none."""

    def __init__(self) -> None:
        self._title, self._text = "", ""
        self._total = self._done = self._done_before = 0
        self._started = self._logged = 0.0

    def start(self, title: str, total_images: int, done_images: int = 0) -> None:
        self._title, self._text = title, ""
        self._total, self._done, self._done_before = total_images, done_images, done_images
        self._started = self._logged = time.monotonic()

    def advance(self, num_images: int) -> None:
        self._done += num_images
        now = time.monotonic()
        if now - self._logged < LINE_SECONDS or self._done == self._done_before:
            return
        self._logged = now
        left = (self._total - self._done) * (now - self._started) / (self._done - self._done_before)
        line = f"{self._title}: {self._done:,} of {self._total:,} images, {format_duration(left)} left"
        log.info("%s", f"{line}  {self._text}".rstrip())

    def set_text(self, text: str) -> None:
        self._text = text


class RichProgress(Progress):
    """Live bar of the pass that is under way; log lines scroll above it."""

    def __init__(self) -> None:
        self._progress: rich_progress.Progress | None = None
        self._task: rich_progress.TaskID | None = None
        self._text = ""

    def start(self, title: str, total_images: int, done_images: int = 0) -> None:
        from rich import progress as rich_progress

        if self._progress is None:
            self._progress = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(bar_width=None),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.fields[text]}"),
                console=get_console(),
                transient=True,
                expand=True,
            )
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total_images, completed=done_images, text=self._text)

    def advance(self, num_images: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, num_images)

    def set_text(self, text: str) -> None:
        self._text = text
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=text)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._task = None


def build_progress(enabled: bool) -> Progress:
    """Return a live bar in a terminal, lines elsewhere, and a no-op where no progress is wanted."""
    if not enabled:
        return Progress()
    return RichProgress() if get_console().is_terminal else LineProgress()


class EpochTable:
    """Formats a row per epoch, training and validation together, under a header that comes once.

    Args:
        epochs: of the whole run.
    """

    _COLUMNS = (
        ("train loss", "train/epoch_loss", "{:.4f}"),
        ("train acc", "train/epoch_accuracy", "{:.4f}"),
        ("val loss", "val/loss", "{:.4f}"),
        ("val acc", "val/accuracy", "{:.4f}"),
        ("lr", "train/lr", "{:.2e}"),
        ("images/s", "perf/images_per_second", "{:,.0f}"),
    )

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._has_header = False

    def lines(
        self, epoch: int, step: int, values: Mapping[str, float], *, seconds: float, is_best: bool = False
    ) -> list[str]:
        """Return the row of an epoch, after the header if it is the first.

        Args:
            epoch: epochs done, from 1.
            step: optimizer steps done.
            values: figures by name; those that are missing leave their column empty.
            seconds: that the epoch took.
            is_best: mark the row.
        """
        width = max(5, 2 * len(str(self._epochs)) + 1)
        cells = [f"{epoch}/{self._epochs}".rjust(width), f"{step:>7}"]
        cells += [
            (style.format(values[name]) if name in values else "").rjust(max(9, len(title)))
            for title, name, style in self._COLUMNS
        ]
        row = "  ".join((*cells, f"{format_duration(seconds):>8}", "best" if is_best else "")).rstrip()
        if self._has_header:
            return [row]
        self._has_header = True
        titles = [title.rjust(max(9, len(title))) for title, _, _ in self._COLUMNS]
        return ["  ".join(("epoch".rjust(width), f"{'step':>7}", *titles, f"{'time':>8}")), row]


def format_duration(seconds: float) -> str:
    """Return `48 s`, `12:05` or `3:20:15`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
