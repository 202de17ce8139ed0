"""Tell split folders from class folders.

The rule, in order:
1. Split folders are called train, val, test (or training; valid, validation; testing), in any case, one per split.
2. A train folder with folders in it is the training split, and its folders are the classes. Other folders beside it
   are left out. If they hold images while there is no val or test folder, `train` may as well be a class (of vehicles,
   say): that is an error, not a guess.
3. A train folder with images but no folders, among other folders of images, is a class called train.
4. Without a train folder every folder is a class, and val is split off. A val or test folder among them is an error.
"""

from dataclasses import dataclass
from pathlib import Path

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import display_list
from cvtrain.data.sources.scan import FolderListing, ImageScanner

KEY = "data.root"
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Layout:
    """Folders relative to the root: of each split, where there are splits; else the class folders."""

    splits: dict[str, str]
    class_folders: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_layout(scanner: ImageScanner) -> Layout:
    """Apply the rule above to the scanner's root; folders and images that it leaves out go to `scanner.left_out`.

    Raises:
        ConfigError: with the root that was probably meant where one can be seen.
    """
    root = scanner.root
    listing = scanner.list_folder("")
    splits = _split_folders(listing.folders, root)
    others = [name for name in listing.folders if name.casefold() not in SPLIT_FOLDERS]
    if "train" in splits:
        return _layout_with_train(scanner, listing, splits, others)
    if splits:
        names = display_list([f"{name}/" for name in splits.values()])
        rule = f"found {names} but no train/"
        remedy = "lay the images out as train/CLASS/IMAGE beside it" + (
            f"; {display_list(others)} would go into train/" if others else ""
        )
        raise ConfigError(KEY, root, rule, remedy)
    _check_depth(listing, scanner)
    _leave_out_loose(scanner, listing)
    return Layout({}, tuple(listing.folders), (), _inside_split_warning(root))


def _layout_with_train(
    scanner: ImageScanner, listing: FolderListing, splits: dict[str, str], others: list[str]
) -> Layout:
    """Return the layout of a root with a folder train: a split (rule 2) or a class (rule 3)."""
    root, train = scanner.root, splits["train"]
    inside = scanner.look_into(train)
    has_held_out = len(splits) > 1
    beside = [] if has_held_out else [name for name in others if scanner.has_images(name)]
    if inside.folders and beside:
        rule = (
            f"cannot tell whether {train}/ is a split or a class: it holds folders, "
            f"and beside it are folders of images: {display_list(beside)}"
        )
        remedy = (
            "if it is the training split, move the others away; if it is a class, put all class folders, "
            "it too, into a new folder train/"
        )
        raise ConfigError(KEY, root, rule, remedy)
    if not inside.folders and not beside:
        raise _no_class_folders(train, inside, root)
    _leave_out_loose(scanner, listing)
    if inside.folders:
        for name in others:
            scanner.left_out.add("folder beside the splits", name)
        return Layout(splits, ())
    note = f"{train}/ holds no folders and stands among folders of images: it is taken as a class, not as a split"
    return Layout({}, tuple(listing.folders), (note,))


def _split_folders(names: list[str], root: str) -> dict[str, str]:
    """The folder of each split among `names`."""
    splits: dict[str, str] = {}
    for name in names:
        split = SPLIT_FOLDERS.get(name.casefold())
        if split in splits:
            rule = f"both {splits[split]}/ and {name}/ could be the {split} split"
            remedy = "keep one of them"
            raise ConfigError(KEY, root, rule, remedy)
        if split is not None:
            splits[split] = name
    return splits


def _leave_out_loose(scanner: ImageScanner, listing: FolderListing) -> None:
    for name in listing.images:
        scanner.left_out.add("image outside the class folders", name)


def _no_class_folders(folder: str, inside: FolderListing, root: str) -> ConfigError:
    held = f"{len(inside.images)} images" if inside.images else "neither images nor folders"
    rule = f"{folder}/ holds {held}, but no class folders"
    remedy = f"sort the images into {folder}/CLASS/IMAGE, or list them with their labels in a manifest (data=csv)"
    return ConfigError(KEY, root, rule, remedy)


def _check_depth(listing: FolderListing, scanner: ImageScanner) -> None:
    """Raise if class folders alone cannot be what the root holds: it is a level too deep or too high."""
    root = scanner.root
    if not listing.folders:
        if not listing.images:
            rule = f"no folders and no images here (images end in {', '.join(scanner.extensions)})"
            remedy = "a folder with train/CLASS/IMAGE, or with CLASS/IMAGE, is needed"
            raise ConfigError(KEY, root, rule, remedy)
        parent = Path(root).absolute().parent
        if parent.name.casefold() in SPLIT_FOLDERS:
            parent = parent.parent
        rule = f"{len(listing.images)} images but no class folders here: it looks like the folder of one class"
        remedy = f"one class folder per class is needed; did you mean {KEY}={parent}?"
        raise ConfigError(KEY, root, rule, remedy)
    for name in listing.folders:
        inside = Path(root, name)
        held_out = any((inside / split).is_dir() for split in SPLIT_FOLDERS if split != "train")
        if (inside / "train").is_dir() and (held_out or len(listing.folders) == 1):
            rule = f"{name}/ has a train/ of its own: this is one level too high"
            remedy = f"did you mean {KEY}={inside}?"
            raise ConfigError(KEY, root, rule, remedy)
    if len(listing.folders) == 1:
        inner = scanner.look_into(listing.folders[0])
        if len(inner.folders) > 1 and not inner.images:
            rule = f"one folder only, {listing.folders[0]}/, and it holds folders: this is one level too high"
            remedy = f"did you mean {KEY}={Path(root, listing.folders[0])}?"
            raise ConfigError(KEY, root, rule, remedy)


def _inside_split_warning(root: str) -> tuple[str, ...]:
    """A warning if the root is itself the train folder of a set with held-out splits beside it."""
    parent, own = Path(root).absolute().parent, Path(root).absolute().name
    if own.casefold() not in SPLIT_FOLDERS:
        return ()
    beside = [name for name in SPLIT_FOLDERS if name != own.casefold() and (parent / name).is_dir()]
    if not beside:
        return ()
    return (
        f"the root is itself called {own}, and {display_list(beside)} beside it is not used: {KEY}={parent} takes both",
    )
