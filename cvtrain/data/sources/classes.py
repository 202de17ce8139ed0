"""The class map: names to ids, one map for all splits."""

import re
from collections.abc import Iterable, Sequence

from cvtrain.config.errors import ConfigError
from cvtrain.config.text import display_list
from cvtrain.data.sources.path_table import canonical, printable

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


def class_name(text: str) -> str:
    """The name of a class as written in a folder name or a manifest: NFC, printable."""
    return printable(canonical(text))


def order_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in the order of their ids: by number if all are integers (2 before 10), else by code point.

    Code points are the order of torchvision's ImageFolder, so ids agree with it wherever names are not numbers of
    different lengths.
    """
    distinct = set(names)
    if all(_INTEGER.fullmatch(name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def check_known(names: Iterable[str], classes: Sequence[str], *, split: str, key: str, value: object) -> None:
    """Raise `ConfigError` if `split` has images of a class that train lacks: a model could never name it."""
    known = set(classes)
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        raise ConfigError(
            key=key,
            value=value,
            rule=f"{split} has images of classes that train has none of: {display_list(unknown)}",
            remedy=f"add them to train, or take them out of {split}; train has {display_list(classes)}",
        )
