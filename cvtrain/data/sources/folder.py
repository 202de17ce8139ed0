"""Source `custom`: a folder of class folders, with or without split folders above them (rules in `layout.py`)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.data import CustomConfig
from cvtrain.config.text import display_list
from cvtrain.data.sources.classes import check_known, class_name, order_classes
from cvtrain.data.sources.exclude import NOTHING_EXCLUDED, Exclusions, read_exclusions
from cvtrain.data.sources.groups import groups_by_regex
from cvtrain.data.sources.layout import KEY, Layout, find_layout
from cvtrain.data.sources.path_table import PathTable
from cvtrain.data.sources.scan import ImageScanner
from cvtrain.data.sources.source import FileSource, Splits
from cvtrain.data.sources.splits import SplitSettings, complete_splits

Reader = Callable[[str], np.ndarray]


def build_custom(config: CustomConfig, reader: Reader, *, allow_untrained: bool = False) -> Splits:
    """The splits of the folder `config.root`, less the images of `config.exclude`."""
    return splits_of_folder(
        str(Path(config.root).expanduser()),
        extensions=tuple(config.extensions),
        reader=reader,
        settings=SplitSettings.of(config),
        excluded=read_exclusions(config.exclude),
        group_regex=config.group_regex,
        allow_untrained=allow_untrained,
    )


def splits_of_folder(
    root: str,
    *,
    extensions: tuple[str, ...],
    reader: Reader,
    settings: SplitSettings,
    excluded: Exclusions = NOTHING_EXCLUDED,
    allow_untrained: bool = False,
    group_regex: str | None = None,
) -> Splits:
    """Scan `root` and label every image by its class folder.

    Args:
        extensions: endings of image files, whatever their case.
        excluded: images that are left out as if they were not there.
        allow_untrained: take classes of val and test that train lacks, too.
        group_regex: see `complete_splits`.

    Raises:
        ConfigError: the folder cannot be read, its layout is unclear, val or test has a class that train lacks, or
            there are fewer than two classes.
    """
    check_folder(root)
    endings = tuple(ending.lower() if ending.startswith(".") else f".{ending.lower()}" for ending in extensions)
    scanner = ImageScanner(root, endings)
    try:
        layout = find_layout(scanner)
        tables, warnings = _scan_splits(scanner, layout)
    except OSError as error:
        raise ConfigError(KEY, root, f"cannot be read: {error}") from error
    tables = {split: {name: excluded.drop(table) for name, table in part.items()} for split, part in tables.items()}
    warnings += excluded.warnings()
    named = tables if allow_untrained else {"train": tables["train"]}
    classes = order_classes(name for part in named.values() for name, table in part.items() if len(table))
    sources = {}
    ids = {name: number for number, name in enumerate(classes)}
    for split, by_class in tables.items():
        filled = {name: table for name, table in by_class.items() if len(table)}
        check_known(filled, classes, split=split, key=KEY, value=root)
        names = [name for name in classes if name in filled]
        sources[split] = FileSource(
            root=root,
            paths=PathTable.concatenate([filled[name] for name in names]),
            labels=np.repeat(
                np.array([ids[name] for name in names], dtype=np.int64),
                [len(filled[name]) for name in names],
            ),
            reader=reader,
        )
    empty = [name for name, table in tables["train"].items() if not len(table)]
    if empty:
        warnings.append(f"class folders without images are left out: {display_list(empty)}")
    return complete_splits(
        sources,
        classes=classes,
        settings=settings,
        key=KEY,
        left_out=(*scanner.left_out.lines(), *excluded.lines()),
        notes=layout.notes,
        warnings=(*layout.warnings, *warnings),
        empty_classes=tuple(name for name in empty if name not in classes),
        allow_untrained=allow_untrained,
        groups=groups_by_regex(sources, group_regex),
    )


def check_folder(root: str) -> None:
    """Raise `ConfigError` unless `root` is a folder."""
    if Path(root).is_dir():
        return
    if Path(root).exists():
        raise ConfigError(KEY, root, "is a file, not a folder", "unpack it if it is an archive")
    raise ConfigError(KEY, root, "no such folder", f"relative paths start from {Path.cwd()}")


def _scan_splits(scanner: ImageScanner, layout: Layout) -> tuple[dict[str, dict[str, PathTable]], list[str]]:
    """Per split, the images of every class by name, empty ones too; and warnings."""
    if not layout.splits:
        return {"train": _scan_classes(scanner, list(layout.class_folders))}, []
    tables = {}
    warnings = []
    for split, folder in layout.splits.items():
        listing = scanner.list_folder(folder)
        if listing.images and not listing.folders:
            if split != "test":
                raise ConfigError(
                    key=KEY,
                    value=scanner.root,
                    rule=f"{folder}/ holds {len(listing.images)} images but no class folders",
                    remedy=f"sort them into {folder}/CLASS/IMAGE",
                )
            # Competitions give out a test folder without labels; that is no reason not to train.
            warnings.append(f"{folder}/ has images but no class folders, so no labels: there is nothing to score")
        for path in listing.images:
            scanner.left_out.add("image outside the class folders", path)
        if listing.folders or split != "test":
            tables[split] = _scan_classes(scanner, [f"{folder}/{name}" for name in listing.folders])
    return tables, warnings


def _scan_classes(scanner: ImageScanner, folders: list[str]) -> dict[str, PathTable]:
    """The images below each class folder. Folders whose names differ only in Unicode form are one class."""
    found: dict[str, list[PathTable]] = {}
    for folder, table in zip(folders, scanner.images_below(folders), strict=True):
        found.setdefault(class_name(folder.rpartition("/")[2]), []).append(table)
    return {name: tables[0] if len(tables) == 1 else PathTable.concatenate(tables) for name, tables in found.items()}
