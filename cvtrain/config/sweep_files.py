"""Find the file of `sweep=NAME`, and split a `cvtrain sweep` command into the search's tokens and the trials'."""

from collections.abc import Sequence
from pathlib import Path

from cvtrain.config.composer import conf_dir
from cvtrain.config.errors import ConfigError
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.overrides import override

FOLDER = "sweep"
SUFFIXES = (".yaml", ".yml")


def find_sweep_file(name: str, config_dir: str | None = None) -> Path:
    """The file that `sweep=name` means: a path, or a name in the user's own sweep folder or in ours.

    Args:
        name: with a suffix or a slash it is a path; else a file's name without suffix.
        config_dir: the folder of --config-dir.

    Raises:
        ConfigError: there is no such file; with the names that there are.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        if path.is_file():
            return path
        rule = "is a folder, not a sweep file" if path.is_dir() else "no such file"
        raise ConfigError("sweep", name, rule, f"paths start from {Path.cwd()}")
    known = sweep_files(config_dir)
    if name in known:
        return known[name]
    names = [f"sweep={close}" for close in closest(name, known)]
    listed = "searches: " + ", ".join(sorted(known))
    if not name:
        raise ConfigError(
            "sweep", rule="has to be set: a file with a search", remedy=f"sweep=NAME or sweep=PATH\n{listed}"
        )
    raise ConfigError("sweep", name, "no such search", "\n".join(filter(None, [did_you_mean(names), listed])))


def sweep_files(config_dir: str | None = None) -> dict[str, Path]:
    """Every sweep file that has a name, the user's own first among equals."""
    folders = [conf_dir(), *([Path(config_dir)] if config_dir is not None else [])]
    found = {}
    for folder in folders:
        for suffix in SUFFIXES:
            found.update({path.stem: path for path in (folder / FOLDER).glob(f"*{suffix}")})
    return found


def split_search(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tokens of a `cvtrain sweep` command: the search's own, and those of its trials.

    `sweep=NAME` becomes `sweep.file=NAME`: a section of settings cannot have a value besides.
    """
    own, trials = [], []
    for token in tokens:
        key, equals, value = token.partition("=")
        if key == FOLDER and equals:
            own.append(token if value[:1] in ("", "'", '"') else override(f"{FOLDER}.file", value))
            own[-1] = own[-1].replace(f"{FOLDER}=", f"{FOLDER}.file=", 1)
        elif key in ("engine", "folds") or key.startswith(f"{FOLDER}."):
            own.append(token)
        else:
            trials.append(token)
    return own, trials
