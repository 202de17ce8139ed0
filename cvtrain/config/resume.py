"""Resuming a run: which folder, which overrides, and which settings may differ from before."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvtrain.config.errors import ConfigError, format_value
from cvtrain.config.overrides import override, unquoted
from cvtrain.config.serialize import flatten
from cvtrain.config.wandb_trial import is_trial, trial_folder

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
OVERRIDES = "overrides.yaml"
METRICS = "metrics.jsonl"
SWEEP_RECORD = "multirun.yaml"
ENVIRONMENT = "environment.json"
# Settings that name files or folders, whose relative paths start from the working folder.
PATHS = ("data.root", "data.file", "data.exclude", "model.weights")
AUTO, MUST = "auto", "must"

# Settings that a resumed run may not change: the state would not fit, or the order of images would differ.
BREAKING = (
    "seed",
    "data.balance",
    "data.batch_size",
    "data.channels",
    "data.dataset",
    "data.fold",
    "data.image_size",
    "data.name",
    "data.split_seed",
    "data.test_fraction",
    "data.val_fraction",
    "model",
    "optimizer.amsgrad",
    "optimizer.backbone_lr_scale",
    "optimizer.decay_norm_and_bias",
    "optimizer.layer_decay",
    "optimizer.name",
    "optimizer.norm_and_bias_lr_scale",
    "scheduler.name",
    "trainer.limit_train_batches",
    "trainer.monitor",
    "trainer.overfit_one_batch",
)
# Settings that change the rest of the run.
TRAINING = (
    "augment",
    "data",
    "loss",
    "model.freeze",
    "model.unfreeze_epoch",
    "optimizer",
    "scheduler",
    "trainer.clip_grad_norm",
    "trainer.ema_decay",
    "trainer.epochs",
    "trainer.max_steps",
    "trainer.grad_accum_steps",
    "trainer.on_nonfinite",
    "trainer.precision",
    "trainer.sync_batchnorm",
)
# Exceptions from a longer prefix above, which change only a place, the speed or how often something is done.
HARMLESS = (
    "augment.preview",
    "data.cache_dir",
    "data.cache_limit_gib",
    "data.check",
    "data.device_cache",
    "data.download",
    "data.eval_batch_size",
    "data.num_workers",
    "data.on_leakage",
    "data.prefetch_batches",
    "data.root",
    "model.cache_features",
    "model.pretrained",
    "model.weights",
    "model.weights_entry",
)


@dataclass(frozen=True)
class Change:
    """A setting that differs between a checkpoint's config and the one at hand."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {format_value(self.old)} -> {format_value(self.new)}"


@dataclass(frozen=True)
class Changes:
    """The differences by what they do to the run."""

    breaking: tuple[Change, ...]
    training: tuple[Change, ...]
    harmless: tuple[Change, ...]


def compare_configs(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Changes:
    """Sort what differs between two configs, as plain values, into breaking, training and harmless changes."""
    old, new = flatten(saved), flatten(current)
    found: dict[str, list[Change]] = {"breaking": [], "training": [], "harmless": []}
    for key in sorted(old.keys() | new.keys()):
        if key not in ("resume", "resume_on_changed_data") and old.get(key) != new.get(key):
            found[_classify_change(key, old.get(key), new.get(key))].append(Change(key, old.get(key), new.get(key)))
    return Changes(**{kind: tuple(changes) for kind, changes in found.items()})


def _classify_change(key: str, old: Any, new: Any) -> str:
    if key == "trainer.ema_decay" and (old is None or new is None):
        return "breaking"  # the checkpoint has an EMA or it has none
    if key == "data.cache":  # a run from before there was one had full-size images too
        full_size = [value in (None, "none") for value in (old, new)]
        return "training" if full_size[0] != full_size[1] else "harmless"
    matches = [
        (len(prefix), kind)
        for kind, prefixes in (("breaking", BREAKING), ("training", TRAINING), ("harmless", HARMLESS))
        for prefix in prefixes
        if key == prefix or key.startswith(f"{prefix}.")
    ]
    return max(matches)[1] if matches else "harmless"


def refuse_breaking(changes: Changes, path: Path) -> None:
    """Raise ConfigError with every breaking change, if there is one."""
    if changes.breaking:
        listed = "\n".join(str(change) for change in changes.breaking)
        raise ConfigError(
            key="resume",
            value=path,
            rule="cannot be resumed with these settings changed",
            remedy=f"{listed}\nleave them as they were, or start a new run without resume",
        )


def resolve_run_dir(resume: str) -> Path | None:
    """The run folder that `resume=PATH` means: PATH itself, or the folder of the checkpoint at PATH; None for words.

    Raises:
        ConfigError: there is nothing at PATH, or no run.
    """
    if resume in (AUTO, MUST):
        return None
    path = Path(resume).expanduser()
    if path.is_file() and path.parent.name == CHECKPOINTS:
        return path.parent.parent
    if path.is_dir() and (path / CHECKPOINTS).is_dir():
        return path
    if path.is_dir() and path.name == CHECKPOINTS:
        return path.parent
    raise ConfigError(
        key="resume",
        value=resume,
        rule="no run and no checkpoint of one is there" if path.exists() else "there is no such file or folder",
        remedy="give a run folder or runs/.../checkpoints/last.pt; resume=auto resumes the newest unfinished run",
    )


def resumed_folder(root: str, name: str, resume: str) -> Path | None:
    """Return the folder of the run to resume: that of a path, or the newest unfinished one in `root/name`."""
    folder = resolve_run_dir(resume)
    return folder if folder is not None else unfinished_run(root, name)


def unfinished_run(root: str, name: str) -> Path | None:
    """The newest unfinished run in `root/name`; in a trial of a sweep, the trial's own folder. None: there is none."""
    folder = trial_folder(root, name)
    if folder is not None:
        return folder if (folder / CHECKPOINTS).is_dir() else None
    return newest_unfinished(Path(root).expanduser() / name)


def default_resume_for_trial(tokens: Sequence[str], multirun: bool) -> list[str]:
    """Add `resume=auto` to the overrides of a sweep's trial, which resumes by itself where it was preempted."""
    if multirun or not is_trial() or any(token.startswith(("resume=", "hydra.run.dir=")) for token in tokens):
        return list(tokens)
    return [*tokens, f"resume={AUTO}"]


def newest_unfinished(parent: Path) -> Path | None:
    """The newest run folder in `parent` that has a checkpoint and was not finished; None if there is none."""
    if not parent.is_dir():
        return None
    runs = [folder for folder in parent.iterdir() if (folder / CHECKPOINTS).is_dir() and not is_finished(folder)]
    return max(runs, key=lambda folder: folder.name, default=None)


def is_finished(folder: Path) -> bool:
    """True if the run in `folder` ended by itself, by its summary, and its last checkpoint is on the disk."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(summary, dict) and summary.get("end_reason") != "interrupted" and not summary.get("checkpoint_error")
    )


def holds_run(folder: Path) -> bool:
    """True if a run or an evaluation has left its files in `folder`."""
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in (CHECKPOINTS, METRICS, SUMMARY))


def refuse_used_folder(folder: Path, key: str = "hydra.run.dir") -> None:
    """Refuse to write a new run over another one, or over a sweep.

    Raises:
        ConfigError: `folder` holds a run, or the record of a sweep.
    """
    if holds_run(folder) or (folder / SWEEP_RECORD).is_file():
        raise ConfigError(
            key=key,
            value=folder,
            rule=f"holds a {'run' if holds_run(folder) else 'sweep'} already, which this one would overwrite",
            remedy=f"resume={folder if holds_run(folder) else AUTO} resumes it, {key}=... takes another folder; "
            "or delete this one",
        )


def with_saved_overrides(folder: Path, given: Sequence[str]) -> list[str]:
    """Return the overrides that a run was started with, and the new ones over them.

    Relative paths of the data that are found where the run was started, in another working folder, become absolute.

    Raises:
        ConfigError: the run folder's overrides.yaml is damaged.
    """
    path = folder / OVERRIDES
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(key="resume", value=folder, rule=f"{path} cannot be read: {error}") from error
    if not isinstance(saved, list) or not all(isinstance(token, str) for token in saved):
        raise ConfigError(key="resume", value=folder, rule=f"{path} is no list of overrides")
    named = {_key_of(token) for token in given}
    paths = {key: token for key, token in paths_of_run(folder).items() if key not in named}
    left_out = named | set(paths) | {"resume"}
    return [*(token for token in saved if _key_of(token) not in left_out), *paths.values(), *given]


def paths_of_run(folder: Path) -> dict[str, str]:
    """Return overrides, by key, for the relative paths of a run that was started in another working folder."""
    try:
        config = flatten(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        started_in = Path(json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    tokens = {}
    for key in PATHS:
        typed = config.get(key)
        if isinstance(typed, str) and typed and not Path(typed).is_absolute():
            path = started_in / typed
            if path != Path.cwd() / typed and path.exists():
                tokens[key] = override(key, str(path)).replace("${", r"\${")
    return tokens


def _key_of(token: str) -> str:
    return token.lstrip("+~").partition("=")[0]


def expand_resume(tokens: Sequence[str], newest: Callable[[], Path | None]) -> list[str]:
    """The overrides of a training command, completed for `resume`: those of the run before, then the new ones.

    `trainer.epochs=+N` becomes N more than the run had. (To Hydra, +10 is the number 10.)

    Args:
        tokens: as the user gave them.
        newest: finds the folder of the run that `resume=auto` and `resume=must` mean; None: there is none.

    Raises:
        ConfigError: there is no run at PATH, or `+N` without one.
    """
    resume = next((unquoted(token.partition("=")[2]) for token in tokens if token.startswith("resume=")), None)
    folder = None
    if resume not in (None, "null", ""):
        folder = resolve_run_dir(str(resume)) or newest()
    completed = list(tokens) if folder is None else with_saved_overrides(folder, tokens)
    return [_with_more_epochs(token, folder) for token in completed]


def _with_more_epochs(token: str, folder: Path | None) -> str:
    key, _, value = token.partition("=")
    if key != "trainer.epochs" or not re.fullmatch(r"\+\d+", value):
        return token
    if folder is None:
        raise ConfigError(
            key=key,
            value=value,
            rule="there is no run to add epochs to",
            remedy="name it, resume=PATH, or give a number of epochs",
        )
    try:
        saved = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        epochs = int(saved["trainer"]["epochs"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            key=key,
            value=value,
            rule=f"{folder / CONFIG} does not say how many epochs the run had: {error}",
            remedy="give the new total as a number",
        ) from error
    return f"{key}={epochs + int(value)}"
