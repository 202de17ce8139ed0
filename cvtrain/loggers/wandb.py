"""Weights & Biases: online where a key and a server are there, else offline on disk, and never in the way."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cvtrain.config.serialize import flatten
from cvtrain.loggers.base import Logger
from cvtrain.loggers.wandb_session import DEFAULT_PROJECT, check_session, why_unreachable
from cvtrain.loggers.wandb_trial import (
    StopRequest,
    check_sweeps_metric,
    chosen_parameters,
    exit_code_to_send,
    note_opened,
    require_key,
)

log = logging.getLogger(__name__)


class WandbLogger(Logger):
    """A W&B run with the run folder's `wandb/` as its place on disk.

    Points go with `step` as their x axis, not by the client's own counter, so that training and validation figures of
    the same step live side by side, and the points after a rewind are drawn over the earlier ones. Settings that are
    None are left to the environment (`WANDB_MODE`, `WANDB_PROJECT`, `WANDB_TAGS`, ...), and under a sweep's agent
    project, entity and name are left to the agent.

    Args:
        run_dir: the run folder.
        config: nested plain values, without secrets; sent with dotted names.
        name: name of the run where neither the user nor an agent gives one.
        project, entity, group, job_type, tags, notes, mode: as in `wandb.init`.
        log_images: send pictures.
        log_checkpoint: send checkpoints as artifacts.
        init_timeout_seconds: how long to wait for the server before logging offline.
        finish_timeout_seconds: how long to wait for the last upload; what is not sent stays on disk.
        run_id: id of the run to resume, from `state()`.

    Raises:
        ConfigError: WANDB_MODE holds no mode; under a sweep, there is no key, or the sweep follows a metric that no run
            logs.
    """

    name = "wandb"

    def __init__(
        self,
        *,
        run_dir: Path,
        config: Mapping[str, Any],
        name: str,
        project: str | None = None,
        entity: str | None = None,
        run_name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        mode: str | None = None,
        log_images: bool = True,
        log_checkpoint: bool = False,
        init_timeout_seconds: float = 30,
        finish_timeout_seconds: float = 60,
        run_id: str | None = None,
    ) -> None:
        self._log_images = log_images
        self._log_checkpoint = log_checkpoint
        self._finish_timeout_seconds = finish_timeout_seconds
        session = check_session(mode=mode, probe_seconds=min(init_timeout_seconds, 5))
        self._in_sweep = session.in_sweep
        self._stop_request = StopRequest()
        if session.in_sweep:
            require_key(session.offline_reason, has_key=session.has_key)
        arguments: dict[str, Any] = {
            "dir": str(run_dir.resolve()),
            "config": flatten(config) | chosen_parameters(),
            "group": group,
            "job_type": job_type,
            "tags": list(tags) or None,
            "notes": notes,
        }
        if not session.in_sweep:
            arguments |= {
                "project": project or session.project or DEFAULT_PROJECT,
                "entity": entity,
                "name": run_name or session.run_name or name,
            }
            if run_id is not None:
                arguments["id"] = run_id
        if session.in_sweep or run_id is not None:
            # A trial that was preempted has the same id when the agent starts it again.
            arguments["resume"] = "allow"
        settings = {
            "init_timeout": init_timeout_seconds,
            "finish_timeout": finish_timeout_seconds,
            "finish_timeout_raises": True,
            "silent": True,
            # The terminal belongs to the progress bar; what cvtrain logs is sent instead.
            "console": "off",
            "capture_loggers": {"cvtrain": "INFO"},
            # W&B keeps the command line, unredacted, with the machine's description.
            "x_disable_meta": session.has_secret_arguments,
            # A run that the user's own process has open is not ours to log into or to close.
            "reinit": "create_new",
            "stop_fn": self._stop_request,
        }
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run = _start_run(arguments, settings, mode=mode, offline_reason=session.offline_reason)
        self._folder = Path(self._run.dir).parent
        note_opened(self._run)
        if self._in_sweep and not self._run.offline:
            check_sweeps_metric(self._run)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log({**{name: float(value) for name, value in values.items()}, "step": step, "epoch": epoch + 1})

    def log_image(self, name: str, path: Path, step: int) -> None:
        if self._log_images:
            import wandb

            self._run.log({name: wandb.Image(str(path)), "step": step})

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(flatten(values))

    def log_artifact(self, path: Path) -> None:
        if not self._log_checkpoint or self._run.disabled:
            return
        import wandb

        artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata={"file": path.name})
        # Immutable: sent from the run folder itself, not from a copy in the user's home.
        artifact.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
        alias = re.sub(r"[^\w.-]", "-", path.stem)
        # The client asks the server about the artifact's name first, and waits 20 s for one that is gone.
        reason = None if self._run.offline else why_unreachable(self._run.settings, seconds=2)
        if reason is None:
            try:
                self._run.log_artifact(artifact, aliases=[alias])
            except Exception as error:
                reason = _one_line(error)
        if reason is not None:
            name = f"{self._run.entity}/{self._run.project}/{artifact.name.partition(':')[0]}"
            command = f"wandb artifact put --type model --name {name} --alias {alias} {path}"
            log.warning("W&B: the checkpoint was not sent (%s). To send it later: %s", reason, command)

    def state(self) -> dict[str, Any]:
        return {"run_id": self._run.id}

    def finish(self, exit_code: int) -> None:
        started = time.monotonic()
        if self._in_sweep:
            exit_code = exit_code_to_send(self._run, exit_code, self._stop_request)
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning(
                "W&B: the server took not everything within %.0f s (logger.wandb.finish_timeout_seconds=%g). "
                "All of it is on disk; upload the rest with: wandb sync --include-online %s",
                time.monotonic() - started,
                self._finish_timeout_seconds,
                self._folder,
            )
        else:
            _say_where(self._run)


def _start_run(
    arguments: dict[str, Any], settings: dict[str, Any], *, mode: str | None, offline_reason: str | None
) -> Any:
    """The run, online if it can be; offline, with a warning, if there is a reason or the server does not answer."""
    import wandb

    if offline_reason is None:
        try:
            run = wandb.init(
                **arguments,
                mode=cast(Any, mode),
                settings=wandb.Settings(**settings),
            )
            _say_where(run)
            return run
        except Exception as error:
            if mode in ("offline", "disabled"):
                raise
            offline_reason = f"no run could be opened on the server ({_one_line(error)})"
    arguments = {name: value for name, value in arguments.items() if name != "resume"}
    run = wandb.init(**arguments, mode="offline", settings=wandb.Settings(**settings))
    log.warning(
        "W&B: %s, so this run is kept offline. To send runs as they go: `wandb login`, or set WANDB_API_KEY, where the "
        "server can be reached. To be offline on purpose: logger.wandb.mode=offline. To send this run later: "
        "wandb sync %s",
        offline_reason,
        Path(run.dir).parent,
    )
    return run


def _say_where(run: Any) -> None:
    if run.disabled:
        log.info("W&B is disabled: nothing is sent or kept")
    elif run.offline:
        log.info("W&B run, offline; to upload it: wandb sync %s", Path(run.dir).parent)
    else:
        log.info("W&B run: %s", run.url)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
