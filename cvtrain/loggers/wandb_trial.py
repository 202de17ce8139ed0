"""A run of W&B as a trial of a sweep: its metric, early stops and failures."""

import logging
import os
import signal
import tempfile
import threading
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.metric_names import metric_problem
from cvtrain.config.wandb_trial import CHOSEN, RUN_ID, SWEEP_ID, current_trial
from cvtrain.loggers.wandb_session import check_session
from cvtrain.runtime.signals import is_signal_exit

log = logging.getLogger(__name__)

# Timeout of queries to the server whose answer the run can do without.
QUESTION_SECONDS = 2
STOPPED_QUERY = """
    query RunStoppedStatus($project: String, $entity: String, $run: String!) {
        project(name: $project, entityName: $entity) { run(name: $run) { stopped } }
    }
"""
# Ids of the runs that this process has opened.
_opened: set[str] = set()


class StopRequest:
    """Callback for the client when the server stops the run, for a person or for the sweep.

    Sends SIGTERM to this process, so that the run saves and ends at its next safe point.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self) -> None:
        self.received = True
        log.warning("W&B: the server asks for this run to stop")
        # Without a handler of its own a process would be gone at once.
        number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)


def chosen_parameters() -> dict[str, list[str]]:
    """The entry of a trial's W&B config that names what the sweep chose; empty outside a sweep."""
    trial = current_trial()
    return {} if trial is None else {CHOSEN: sorted(trial.parameters)}


def require_key(offline_reason: str | None, *, has_key: bool) -> None:
    """Refuse to train for a sweep that cannot get the figures.

    Raises:
        ConfigError: there is no API key.
    """
    if not has_key:
        raise ConfigError(
            "WANDB_API_KEY",
            rule=f"{offline_reason}, and this run is a trial of sweep {os.environ.get(SWEEP_ID)}, which waits for it",
            remedy="`wandb login` on this machine, or set WANDB_API_KEY for the agent",
        )


def note_opened(run: Any) -> None:
    """Remember that this process's run was opened on the server, and will be closed there."""
    _opened.add(run.id)


def check_sweeps_metric(run: Any) -> None:
    """Check the metric that the sweep optimizes. Does not wait for a server that does not answer.

    Raises:
        ConfigError: no run logs it; the W&B run is closed as failed then.
    """
    import wandb

    try:
        api = wandb.Api(overrides={"entity": run.entity, "project": run.project}, timeout=10)
        metric = api.sweep(f"{run.entity}/{run.project}/{run.sweep_id}").config.get("metric") or {}
        name = metric.get("name")
    except Exception as error:
        log.debug("W&B: the sweep's metric could not be looked up", exc_info=error)
        return
    problem = None if name is None else metric_problem(f"metric.name of sweep {run.sweep_id}", name)
    if problem is not None:
        run.finish(exit_code=2)
        raise ConfigError(problems=[problem])


def exit_code_to_send(run: Any, exit_code: int, request: StopRequest) -> int:
    """The exit code that the server gets for a trial.

    A trial that the sweep has stopped did what it should: 0, so that its figures count. One that a signal ended
    otherwise is preempted: the sweep gives it to an agent again, and it resumes from its checkpoint.
    """
    if not is_signal_exit(exit_code):
        return exit_code
    if request.received or _was_stopped(run):
        log.info("W&B: the sweep has stopped this trial")
        return 0
    run.mark_preempting()
    return exit_code


def _was_stopped(run: Any) -> bool:
    import wandb

    if run.offline:
        return False
    try:
        api = wandb.Api(timeout=QUESTION_SECONDS)
        names = {"project": run.project, "entity": run.entity, "run": run.id}
        data: Any = api._service_api.execute_graphql(STOPPED_QUERY, variables=names, timeout=QUESTION_SECONDS)
        return bool(data["project"]["run"]["stopped"])
    except Exception as error:
        log.debug("W&B: the server did not say whether it stopped the run", exc_info=error)
        return False


def report_failure(exit_code: int, message: str) -> None:
    """Report to the server that a trial failed before its run was opened, so that the sweep does not wait for it.

    Does nothing if the run was opened, which reports its own end; fails silently, since there is an error already.
    """
    if os.environ.get(RUN_ID) in _opened:
        return
    import wandb

    try:
        if check_session(mode=None, probe_seconds=QUESTION_SECONDS).offline_reason is not None:
            return
        with tempfile.TemporaryDirectory() as folder:
            settings = wandb.Settings(silent=True, console="off", init_timeout=10, finish_timeout=10)
            run = wandb.init(dir=folder, resume="allow", settings=settings)
            run.summary["error"] = message
            run.finish(exit_code=exit_code)
    except Exception as error:
        log.debug("W&B: the failure could not be reported", exc_info=error)
