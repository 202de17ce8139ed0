"""A live bar per epoch where the output is a terminal; nothing where it is not."""

from typing import TYPE_CHECKING, Protocol

from cvtrain.runtime.console import get_console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar(Protocol):
    """What the trainer tells a progress bar."""

    def start(self, title: str, total_images: int, done_images: int = 0) -> None: ...
    def advance(self, num_images: int) -> None: ...
    def show(self, text: str) -> None: ...
    def close(self) -> None: ...


class NullProgress:
    """Shows nothing: the log lines per epoch say it all."""

    def start(self, title: str, total_images: int, done_images: int = 0) -> None: ...
    def advance(self, num_images: int) -> None: ...
    def show(self, text: str) -> None: ...
    def close(self) -> None: ...


class RichProgress:
    """One bar of rich's for the pass that is under way; log lines scroll above it."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total_images: int, done_images: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=get_console(),
                transient=True,
                expand=True,
            )
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total_images, completed=done_images, text="")

    def advance(self, num_images: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, num_images)

    def show(self, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=text)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._task = None


def build_progress(enabled: bool) -> ProgressBar:
    """Return a live bar if wanted and the console is a terminal, else a no-op; in notebooks too, where it flickers."""
    console = get_console()
    return RichProgress() if enabled and console.is_terminal and not console.is_jupyter else NullProgress()
