"""Import a user's own class by its import path."""

import importlib
import sys
from typing import Any

from cvtrain.config.errors import ConfigError

NO_IMPORT_PATH = "must be an import path with a dot, such as my_package.nets.MyNet"


def install_remedy(extra: str, package: str | None = None) -> str:
    """Return how to get an optional package; cvtrain itself is on no index, so `pip install cvtrain[...]` fails."""
    return f"uv sync --extra {extra}, or pip install {package or extra}"


def is_import_path(path: str) -> bool:
    """True for names joined by dots, at least two."""
    parts = path.split(".")
    return len(parts) >= 2 and all(part.isidentifier() for part in parts)


def import_object(path: str, key: str) -> Any:
    """The object that `path` names, such as the class `MyNet` for `my_package.nets.MyNet`.

    The working folder is importable, as it is with `python -m`; the console script alone would not have it.
    A path may go through attributes too: `my_package.nets.MyNet.small`.

    Args:
        path: module and attribute names joined by dots, at least one of each.
        key: the setting that holds the path, for errors.

    Raises:
        ConfigError: the path is no dotted name, its module is not found, or the module lacks the attribute.
        Exception: whatever the user's module raises while it is imported, with its own traceback.
    """
    if not is_import_path(path):  # as of `evaluate`, which has no checks of its own
        raise ConfigError(key, path, NO_IMPORT_PATH)
    parts = path.split(".")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    importlib.invalidate_caches()
    module, attributes = _import_longest_module(parts, key)
    found: Any = module
    for position, attribute in enumerate(attributes):
        if not hasattr(found, attribute):
            _raise_no_attribute(found, parts[: len(parts) - len(attributes) + position], attribute, path, key)
        found = getattr(found, attribute)
    return found


def _import_longest_module(parts: list[str], key: str) -> tuple[Any, list[str]]:
    """The module that the most leading parts name, and the parts that are left: its attributes, at least one."""
    module = None
    for length in range(1, len(parts)):
        name = ".".join(parts[:length])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only this very module's absence is the path's fault; one that it imports in turn is the cause to show.
            if error.name != name:
                raise ConfigError(
                    key=key,
                    value=".".join(parts),
                    rule=f"module {name} cannot be imported: it imports {error.name}, which is not installed",
                    remedy=f"install {error.name}, or take its import out of {name}",
                ) from error
            if module is None:
                raise ConfigError(
                    key=key,
                    value=".".join(parts),
                    rule=f"no module {name} in the working folder or among the installed packages",
                    remedy=f"start from the folder that holds {name}, or install the package",
                ) from error
            return module, parts[length - 1 :]
    return module, parts[-1:]


def _raise_no_attribute(found: Any, parents: list[str], attribute: str, path: str, key: str) -> None:
    import difflib

    names = [name for name in dir(found) if not name.startswith("_")]
    close = difflib.get_close_matches(attribute, names, n=1)
    raise ConfigError(
        key=key,
        value=path,
        rule=f"{'.'.join(parents)} has no {attribute}",
        remedy=f"did you mean {'.'.join([*parents, close[0]])}?" if close else "",
    )
