"""Interpolations that conf/ uses: the run folder's name, and the list of groups in the help text."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cvtrain.config.composer import Composer
from cvtrain.config.errors import format_value
from cvtrain.config.reflection import is_missing, own_settings
from cvtrain.config.resume import AUTO, MUST, resumed_folder
from cvtrain.config.sweep_files import FOLDER, sweep_files
from cvtrain.config.wandb_trial import trial_folder

HELP_WIDTH = 100


class CachedText:
    """Makes each text at its first call. Unlike `functools.cache`, it goes to launchers' processes by pickle.

    Args:
        make: makes the text; a function of a module, or a `partial` of one.
    """

    def __init__(self, make: Callable[..., str]) -> None:
        self._make = make
        self._texts: dict[tuple[str, ...], str] = {}

    def __call__(self, *words: str) -> str:
        if words not in self._texts:
            self._texts[words] = self._make(*words)
        return self._texts[words]


def register_resolvers(composer: Composer) -> None:
    """Make the interpolations of conf/ known to OmegaConf, such as `${run_dir:root,name,resume}`."""
    # The cache belongs to one composed config: asked again, the same config gives the same folder.
    OmegaConf.register_new_resolver("new_run_dir", new_run_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("repetition_dir", repetition_dir, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)
    # Parts of the help text, which every composition resolves.
    OmegaConf.register_new_resolver("list_groups", CachedText(partial(list_groups, composer)), replace=True)
    OmegaConf.register_new_resolver("list_settings", CachedText(list_settings), replace=True)
    OmegaConf.register_new_resolver("list_sweeps", CachedText(partial(list_sweeps, composer)), replace=True)


def new_run_dir(root: str, name: Any) -> str:
    """Make the folder `<root>/<name>/<YYYY-mm-dd_HH-MM-SS>` and return its path.

    Of two runs that start in the same second, on one machine or on a shared disk, one gets the suffix _2.
    """
    stem = Path(root).expanduser() / format_value(name) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    stem.parent.mkdir(parents=True, exist_ok=True)
    folder, number = stem, 1
    while True:
        try:
            folder.mkdir()
            return str(folder)
        except FileExistsError:
            number += 1
            folder = stem.with_name(f"{stem.name}_{number}")


def run_dir(root: str, name: Any, resume: str | None) -> str:
    """Return the folder of the run that `resume` means, else a new one as `new_run_dir` makes it.

    A trial of a W&B sweep has one folder, however often it is started: `<root>/<name>/sweep_<id>/<run id>`.
    """
    own = trial_folder(root, format_value(name))
    if own is not None and resume in (None, AUTO, MUST):
        own.mkdir(parents=True, exist_ok=True)
        return str(own)
    if resume is not None:
        folder = resumed_folder(root, format_value(name), resume)
        if folder is not None:
            return str(folder)
    return new_run_dir(root, name)


def repetition_dir(chosen: str | None, root: str, run: str) -> str:
    """Return the folder of `cvtrain reproduce RUN`: `chosen`, else a new one in `<root>/<name of the run's folder>`."""
    return str(Path(chosen).expanduser()) if chosen else new_run_dir(root, Path(run).expanduser().absolute().name)


def list_groups(composer: Composer) -> str:
    """Every config group with its options, one paragraph each, those of the user's own --config-dir included."""
    lines = []
    for group in composer.groups:
        if group not in ("hydra", FOLDER) and not group.startswith("hydra/"):
            lines += _paragraph(f"  {group:<11} ", composer.options(group))
    return "\n".join(lines)


def list_sweeps(composer: Composer) -> str:
    """The names that `sweep=` takes, those of the user's own --config-dir included."""
    return "\n".join(_paragraph("  ", sorted(sweep_files(composer.config_dir))))


def list_settings(verb: str) -> str:
    """Every setting of a verb outside its groups, with its default and meaning."""
    rows = []
    for item in own_settings(verb):
        default = "required" if is_missing(item.default) else format_value(item.default)
        rows.append((f"{item.key}={default}", item.rule.help if item.rule else ""))
    width = max(len(setting) for setting, _ in rows)
    return "\n".join(f"  {setting:<{width}}  {meaning}" for setting, meaning in rows)


def _paragraph(head: str, words: list[str]) -> list[str]:
    lines = [head]
    for word in words:
        if len(lines[-1]) + len(word) > HELP_WIDTH:
            lines.append(" " * len(head))
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
