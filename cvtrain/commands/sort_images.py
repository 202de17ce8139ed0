"""Put predicted images into a folder per class: `sort_into=` of the verb `predict`."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cvtrain.config.prediction_paths import UNSURE
from cvtrain.config.schema.predict import SortMode
from cvtrain.config.text import display_text
from cvtrain.data.sources.listing import Listing, common_folder
from cvtrain.runtime.files import temporary_path

log = logging.getLogger(__name__)

# What some system takes for something else in a name.
_UNSAFE = re.compile(r'[/\\:*?"<>|]')


def sort_images(
    listing: Listing, preds: Iterable[str | None], classes: Sequence[str], target: Path, mode: SortMode
) -> None:
    """Link, copy or move each image to `target/<class>/<path below the folder common to all>`.

    What is there already stays, so that a command that was stopped can be given again. Images without a prediction are
    left where they are.

    Args:
        preds: class, or `unsure`, of each image of the listing; None or empty: it could not be read.
        classes: the names that `preds` has.

    Raises:
        OSError: the disk is full or a folder cannot be written; what was done stays.
    """
    folders = {**folder_names(classes), UNSURE: UNSURE}
    base = common_folder(listing)
    num_done = num_there = 0
    for path, pred in zip(listing.paths, preds, strict=True):
        if not pred:
            continue
        image = Path(os.path.abspath(Path(listing.root, path)))  # noqa: PTH100
        place = target / folders[pred] / image.relative_to(base)
        if os.path.lexists(place):
            num_there += 1
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            _put(image, place, mode)
            num_done += 1
    words = {SortMode.link: "linked", SortMode.copy: "copied", SortMode.move: "moved"}
    there = f"; {num_there:,} were there already" if num_there else ""
    log.info("%s %s images into %s%s", words[mode], f"{num_done:,}", target, there)


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """Return a folder name for each class that is safe on every system; no two are equal, whatever their case."""
    names: dict[str, str] = {}
    taken = {UNSURE}
    for number, name in enumerate(classes):
        safe = _UNSAFE.sub("_", display_text(name)).strip(" .")[:100] or "_"
        safe = f"{safe}_{number}" if safe.casefold() in taken else safe
        taken.add(safe.casefold())
        names[name] = safe
    return names


def _put(image: Path, place: Path, mode: SortMode) -> None:
    if mode is SortMode.link:
        place.symlink_to(image)
        return
    if mode is SortMode.move:
        try:
            image.rename(place)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:  # another file system
                raise
    # Whole or not at all, as after a kill an image that is there counts as done.
    temporary = temporary_path(place)
    try:
        shutil.copy2(image, temporary)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    if mode is SortMode.move:
        image.unlink()
