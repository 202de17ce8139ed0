"""Rules of group `data` that look at the disk: is there anything to read? Only names are listed, no image is opened."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cvtrain.config.errors import Problem
from cvtrain.config.schema.check import CheckConfig
from cvtrain.config.schema.data import CsvConfig, CustomConfig, FileDataConfig, OwnFilesConfig
from cvtrain.config.schema.root import Config

LAYOUT = "expected: train/<class>/*.jpg and val/<class>/*.jpg, or <class>/*.jpg alone, split by data.val_fraction"


def folder_has_classes(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not isinstance(config.data, CustomConfig):
        return
    try:
        yield from list(_folder_problems(config.data.root, config, is_set))
    except OSError as error:
        yield _unreadable("data.root", config.data.root, error)


def _folder_problems(given: str, config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    root = Path(given).expanduser()
    if not given:  # as of a shell's variable that is not set; a Path makes the current folder of it
        yield Problem("data.root", given, "is empty", "name the folder of the photos; data.root=. is this one")
    elif not root.exists():
        yield Problem("data.root", given, "no such folder", _nearest(root))
    elif not root.is_dir():
        yield Problem("data.root", given, "is a file, not a folder", _archive_remedy(root))
    else:
        yield from _layout_problems(given, root, config, is_set)


def _layout_problems(
    given: str, root: Path, config: Config | CheckConfig, is_set: Callable[[str], bool]
) -> Iterator[Problem]:
    folders = _visible_folders(root)
    if not folders:
        inside = "only files" if any(root.iterdir()) else "nothing"
        yield Problem("data.root", given, f"holds {inside}, no class folders", LAYOUT)
        return
    has_train, has_val = "train" in folders, "val" in folders
    if (has_val or "test" in folders) and not has_train:
        there = " and ".join(f"{name}/" for name in ("val", "test") if name in folders)
        yield Problem("data.root", given, f"has {there} but no train/", LAYOUT)
    # What cvtrain.data.sources.layout allows: train as a class among others, and a test folder without labels.
    may_be_class = bool(folders - {"train", "val", "test"})
    for split in ("val",) if may_be_class else ("train", "val"):
        if has_train and split in folders and not _visible_folders(root / split):
            yield Problem("data.root", given, f"{split}/ has no class folders", LAYOUT)
    data = config.data
    # With folds, val_fraction has a problem of its own.
    for key in () if data.fold else ("val_fraction",) if data.test_fraction else ("val_fraction", "split_seed"):
        if has_train and has_val and is_set(f"data.{key}"):
            yield Problem(
                f"data.{key}",
                getattr(config.data, key),
                f"has no effect: {root / 'val'} is the validation split",
                f"leave data.{key} out, or move val/ away",
            )


def manifest_exists(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if not isinstance(config.data, CsvConfig):
        return
    try:
        yield from list(_manifest_problems(config.data))
    except OSError as error:
        yield _unreadable("data.file", config.data.file, error)


def _manifest_problems(data: CsvConfig) -> Iterator[Problem]:
    file, root = Path(data.file).expanduser(), Path(data.root).expanduser()
    if file.is_dir():
        yield Problem("data.file", data.file, "is a folder, not a manifest file")
    elif file.exists() and not file.is_file():
        remedy = "save the rows in a file and name that"
        yield Problem("data.file", data.file, "is a pipe or a device, not a regular file", remedy)
    elif not file.is_file():
        yield Problem("data.file", data.file, "no such file", _nearest(file))
    elif file.stat().st_size == 0:
        yield Problem("data.file", data.file, "is empty; its first row has to name the columns")
    if data.root and not root.is_dir():
        yield Problem("data.root", data.root, "no such folder", _nearest(root))


def _unreadable(key: str, given: str, error: OSError) -> Problem:
    remedy = "see to it that you may read and enter the folder (ls -ld), or name another one"
    return Problem(key, given, f"cannot be read: {error.strerror or error}", remedy)


def _visible_folders(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}


def _nearest(path: Path) -> str:
    """What there is instead: the closest name in the deepest folder of the path that exists."""
    from cvtrain.config.hints import closest

    absolute = path.absolute()
    for parent in absolute.parents:
        if parent.is_dir():
            missing = absolute.relative_to(parent).parts[0]
            names = closest(missing, (entry.name for entry in parent.iterdir() if not entry.name.startswith(".")))
            hint = f", but {names[0]} is there" if names else ""
            return f"{parent} has no {missing}{hint}"
    return ""


def _archive_remedy(file: Path) -> str:
    is_archive = file.suffix.lower() in {".zip", ".gz", ".tgz", ".tar", ".xz", ".bz2", ".7z"}
    return "unpack the archive and name the folder" if is_archive else ""


def cache_dir_is_folder(config: Config, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    if isinstance(config.data, FileDataConfig) and config.data.cache_dir is not None:
        folder = Path(config.data.cache_dir).expanduser()
        existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if existing is not None and not existing.is_dir():
            yield Problem("data.cache_dir", config.data.cache_dir, f"{existing} is a file, not a folder")


def exclude_is_file(config: Config | CheckConfig, is_set: Callable[[str], bool]) -> Iterator[Problem]:
    data = config.data
    if not isinstance(data, OwnFilesConfig) or data.exclude is None:
        return
    file = Path(data.exclude).expanduser()
    if file.is_dir():
        yield Problem("data.exclude", data.exclude, "is a folder, not a CSV file", _table_in(file))
    elif not file.exists():
        yield Problem("data.exclude", data.exclude, "no such file", _nearest(file))


def _table_in(folder: Path) -> str:
    table = folder / "quarantine.csv"
    return f"did you mean data.exclude={table}?" if table.is_file() else ""


DATA_FILE_CHECKS = (folder_has_classes, manifest_exists, cache_dir_is_folder, exclude_is_file)
