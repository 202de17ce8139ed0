"""Files that cannot be decoded: the error that a reader raises, and the list that a run leaves behind."""

import csv
import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cvtrain.config.errors import RunError
from cvtrain.config.text import escape_formula

SKIPPED_COLUMNS = ("split", "index", "path", "cause")


class BadImageError(RunError, ValueError):
    """An image that cannot be decoded as a whole.

    Attributes:
        path: the file, or the name of the image.
        cause: what is wrong with it, in words.
        index: its place in its split, where it is known.
    """

    def __init__(self, path: str | os.PathLike[str], cause: str, index: int | None = None) -> None:
        self.path = os.fspath(path)
        self.cause = cause
        self.index = index
        # All arguments reach ValueError, so that the error survives the way out of a worker process.
        super().__init__(self.path, cause, index)

    def __str__(self) -> str:
        place = "" if self.index is None else f" (image {self.index} of its split)"
        # os.fsdecode marks bytes that are no UTF-8 with surrogates, which no console can print.
        path = self.path.encode("utf-8", "backslashreplace").decode("utf-8")
        return (
            f"{path}{place}: {self.cause}\n"
            "  mend or remove the file; data.on_bad_image=skip leaves files that cannot be read out and lists them"
        )


class TooManyFilesError(RunError):
    """The process may open no more files: the fault of no image, so that the run ends instead of leaving images out."""

    def __str__(self) -> str:
        return (
            f"too many open files: {super().__str__()} cannot be opened\n"
            "  raise the limit before the start (ulimit -n 65535), or set a smaller data.num_workers\n"
            "  a Dataset of your own must close the files that it opens"
        )


def is_out_of_files(error: BaseException) -> bool:
    """True if this process, or the whole system, has too many files open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class ImageError(ValueError):
    """A fault of an image in our own words, which need no further explanation."""


@dataclass(frozen=True)
class BadImage:
    """An image that was left out of a batch.

    Attributes:
        index: its place in its split.
        name: what people call it, see `ImageSource.name`.
        cause: what is wrong with it.
    """

    index: int
    name: str
    cause: str


def describe_error(error: Exception) -> str:
    """An error of reading or decoding in words. Decoders raise almost any type on damaged bytes."""
    message = " ".join(str(error).split())
    if isinstance(error, ImageError):
        return message
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    # Those of Pillow's parsers, such as struct.error, mean little without their type.
    own_words = isinstance(error, (ValueError, OSError, SyntaxError)) and message
    return f"damaged; the decoder says: {message if own_words else f'{type(error).__name__}: {message}'}"


def write_skipped(path: str | os.PathLike[str], bad: Mapping[str, Iterable[BadImage]]) -> int:
    """Write the skipped images of each split, by index, to the CSV file `path`. Returns how many there are.

    The columns are split, index, path and cause. Nothing is written where nothing was skipped.
    """
    rows = [
        (split, image.index, escape_formula(image.name), escape_formula(image.cause))
        for split, images in bad.items()
        for image in sorted(images, key=lambda image: image.index)
    ]
    if rows:
        with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
            writer = csv.writer(file)
            writer.writerow(SKIPPED_COLUMNS)
            writer.writerows(rows)
    return len(rows)
