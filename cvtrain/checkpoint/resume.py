"""Resuming a run: which checkpoint, what may differ in the config, and what a longer run does."""

import logging
from pathlib import Path
from typing import Any

from cvtrain.checkpoint.errors import CheckpointError
from cvtrain.checkpoint.file import load_checkpoint
from cvtrain.checkpoint.store import latest_checkpoint
from cvtrain.config.errors import ConfigError
from cvtrain.config.redact import redact
from cvtrain.config.resume import CHECKPOINTS, MUST, compare_configs, refuse_breaking
from cvtrain.config.schema.root import Config
from cvtrain.config.serialize import to_plain
from cvtrain.config.text import display_list
from cvtrain.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from cvtrain.runtime.console import display_path

log = logging.getLogger(__name__)


def load_resume_state(config: Config, run_dir: Path, world: ProcessGroup = SINGLE_PROCESS) -> dict[str, Any] | None:
    """Load the checkpoint that `config.resume` means; None: a new run. Of several ranks, rank 0 decides.

    Raises:
        ConfigError: as `find_resume_checkpoint`; or the folder of the run is not to be seen from here.
    """
    found = find_resume_checkpoint(config, run_dir) if world.is_main_process else None
    path = world.broadcast(None if found is None else found[0])
    if found is not None or path is None:
        return None if found is None else found[1]
    if not path.is_file():
        raise ConfigError(
            key="resume",
            value=path,
            rule=f"the checkpoint that rank 0 found is not there for a process on {world.node}",
            remedy="put output_root on a file system that all machines of the run see",
        )
    return load_checkpoint(path)


def find_resume_checkpoint(config: Config, run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the checkpoint that `config.resume` means, and load it; None: a new run.

    A damaged checkpoint is named in a warning, and the one before it is taken. A checkpoint that the user named is
    taken or refused.

    Raises:
        ConfigError: `resume=must` or a path, and no checkpoint there can be used; or breaking changes in the config.
    """
    if config.resume is None:
        return None
    named = Path(config.resume).expanduser()
    if named.is_file():
        path, state = named, load_checkpoint(named)
    else:
        try:
            found = latest_checkpoint(run_dir / CHECKPOINTS)
        except CheckpointError as error:
            raise ConfigError(key="resume", value=config.resume, rule=error.rule, remedy=error.remedy) from error
        if found is None:
            if config.resume == MUST or named.exists():
                raise ConfigError(
                    key="resume",
                    value=config.resume,
                    rule=f"there is no checkpoint in {run_dir / CHECKPOINTS} that can be used",
                    remedy="start a new run without resume",
                )
            log.info("resume=%s: nothing to resume, a new run starts in %s", config.resume, display_path(run_dir))
            return None
        path, state, problems = found
        for problem in problems:
            log.warning("%s", problem)
    if "optimizer" not in state or "position" not in state:
        raise CheckpointError(path, "holds a model, but not the state of a run that can be resumed")
    check_config_changes(config, state, path)
    position = state["position"]
    log.info("resuming from %s (step %d, %d epochs done)", display_path(path), position["step"], position["epoch"])
    return path, state


def check_config_changes(config: Config, state: dict[str, Any], path: Path) -> None:
    """Log what differs from the config of the run so far.

    Raises:
        ConfigError: settings that a run cannot change on its way.
    """
    changes = compare_configs(state["config"], redact(to_plain(config)))
    refuse_breaking(changes, path)
    for change in changes.harmless:
        log.info("changed: %s", change)
    for change in changes.training:
        log.warning("changed, and from here on the run differs from an unchanged one: %s", change)


def check_classes(classes: tuple[str, ...], state: dict[str, Any]) -> None:
    """Refuse to resume with other classes, or the same in another order.

    Raises:
        ConfigError: it names the classes.
    """
    before = tuple(state["classes"])
    if classes != before:
        raise ConfigError(
            key="data",
            rule=f"the images have the classes {display_list(classes)}; the run was trained on {display_list(before)}",
            remedy="put the class folders back as they were, or start a new run",
        )


def describe_schedule_change(state: dict[str, Any], total_steps: int, learning_rate: float) -> None:
    """Log how a run of another length changes the learning rate.

    Args:
        learning_rate: the largest of the resumed run's parameter groups at the checkpoint's step.
    """
    planned, step = state["planned_steps"], state["position"]["step"]
    if planned == total_steps or not 0 < step < total_steps:
        return
    log.info(
        "the run now ends at step %d instead of %d; the learning rate is %g from here on (it was %g at step %d)",
        total_steps,
        planned,
        learning_rate,
        max(group["lr"] for group in state["optimizer"]["param_groups"]),
        step,
    )
