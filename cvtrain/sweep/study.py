"""The study of a search: its trials in a database, which may be shared by many machines."""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from cvtrain.config.errors import ConfigError, format_value
from cvtrain.config.redact import redact
from cvtrain.config.resume import compare_configs
from cvtrain.config.serialize import flatten, to_plain
from cvtrain.sweep.pruning import build_pruner
from cvtrain.sweep.sampling import SURPLUS, build_sampler, draw, rank_of
from cvtrain.sweep.search import Search
from cvtrain.sweep.storage import RetryPolicy, explained_storage, open_storage
from cvtrain.sweep.trial import trial_overrides

DATABASE = "study.db"
DEFINITION = "cvtrain"
# Attributes of a trial: who runs it and with what, when that was last said, and how it ended. Few, since each is a
# write to the database.
RUN, SEEN, END = "run", "seen", "end"
# How often a machine says that it still runs a trial, and after how long without a word others take it over.
HEARTBEAT_SECONDS = 30.0
LOST_SECONDS = 600.0


@dataclass(frozen=True)
class Assignment:
    """A trial that this machine is to run. `values`: its parameters; `again`: it was begun before and goes on."""

    trial: Trial
    number: int
    values: dict[str, Any]
    again: bool


class StudyStore:
    """What a search asks of its database: the next trial, a place for values, and how trials ended.

    Once it is open, a database that goes away is waited for.

    Args:
        search: the search.
        patience: says for how long.

    Raises:
        ConfigError: the database cannot be opened, or holds a study of this name over another search space.
    """

    def __init__(self, search: Search, patience: RetryPolicy | None = None) -> None:
        patience = patience or RetryPolicy()
        self.search = search
        self.url = search.config.sweep.storage or f"sqlite:///{search.folder.absolute() / DATABASE}"
        self._storage = open_storage(self.url, patience, is_own=search.config.sweep.storage is None)
        # Multivariate sampling is experimental to Optuna since 2020.
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with explained_storage(self.url):
            self.study = optuna.create_study(
                study_name=search.name,
                storage=self._storage,
                direction="maximize" if search.spec.metric.maximize else "minimize",
                sampler=build_sampler(search.spec, search.config.sweep.sampler, search.config.sweep.seed),
                pruner=build_pruner(search.spec.early_termination),
                load_if_exists=True,
            )
            self._check_definition()
        patience.begin()
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}
        self._last_heartbeat = time.monotonic()

    # ------------------------------------------------------------------ which study it is

    def _check_definition(self) -> None:
        wanted = definition_of(self.search)
        saved = self.study.user_attrs.get(DEFINITION)
        if saved is None and not self.study.get_trials(deepcopy=False):
            self.study.set_user_attr(DEFINITION, wanted)
            return
        differences = differences_of(saved or {}, wanted)
        if differences:
            listed = "\n".join(differences)
            raise ConfigError(
                "sweep.name",
                self.search.name,
                "there is a study of this name with another search in " + redact(self.url),
                f"{listed}\nmake them the same to go on with it, or begin another one: sweep.name=...",
            )

    # ------------------------------------------------------------------ trials

    def trials(self) -> list[FrozenTrial]:
        """All trials of the study, by number, without those that were one too many."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if SURPLUS not in trial.user_attrs]

    def next_trial(self, limit: int) -> Assignment | None:
        """A trial to run: one that was cut and waits, else a new one; None if the study has its `limit` of trials.

        Machines that ask at the same moment may begin one too many; who was late sees it by its number, and gives it
        up before it runs.
        """
        self._requeue_lost()
        if len(self.trials()) >= limit and not any(trial.state is TrialState.WAITING for trial in self.trials()):
            return None
        trial = self.study.ask()
        frozen = self._frozen(trial)
        if rank_of(frozen, self.study) >= limit:
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        values = draw(trial, self.search.spec)
        overrides = trial_overrides(self.search, values)
        trial.set_user_attr(RUN, {"owner": self._owner, "values": values, "overrides": redact(overrides)})
        return Assignment(trial, trial.number, values, again=RUN in frozen.user_attrs)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return next(each for each in self.study.get_trials(deepcopy=False) if each.number == trial.number)

    def report(self, trial: Trial, index: int, value: float) -> bool:
        """Keep the value of a trial's `index`-th evaluation (from 1); True if the trial had better end here."""
        trial.report(value, index)
        return bool(trial.should_prune())

    def finish(self, trial: Trial, state: TrialState, *, value: float | None, **end: Any) -> None:
        """Keep how a trial ended, with its value where it has one."""
        values = value if state is TrialState.COMPLETE else None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another machine took it over
            trial.set_user_attr(END, end)
            self.study.tell(trial, values, state=state, skip_if_finished=True)

    def put_back(self, trial: Trial) -> None:
        """Leave a trial that was cut for the next start of the search."""
        self._set_waiting(trial)

    def heartbeat(self, running: list[Trial]) -> None:
        """Say now and then that this machine still runs these trials."""
        if time.monotonic() - self._last_heartbeat < HEARTBEAT_SECONDS:
            return
        self._last_heartbeat = time.monotonic()
        for trial in running:
            trial.set_user_attr(SEEN, time.time())

    def _requeue_lost(self) -> None:
        """Put trials back whose search was killed: on this machine at once, on another after ten minutes' silence."""
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and self._is_lost(trial):
                self._set_waiting(trial)

    def _set_waiting(self, trial: Trial | FrozenTrial) -> None:
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(RUN, {}).get("owner")
        if owner is not None and owner["host"] == self._owner["host"]:
            return process_start(owner["pid"]) != owner["started"]
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - trial.user_attrs.get(SEEN, begun) > LOST_SECONDS


def definition_of(search: Search) -> dict[str, Any]:
    """What makes a study this one: its parameters, what it optimises, and the settings that all trials share."""
    spec = search.spec
    return {
        "method": spec.method,
        "metric": {"name": spec.metric.name, "goal": "maximize" if spec.metric.maximize else "minimize"},
        "parameters": {item.key: {"distribution": item.distribution, **item.settings} for item in spec.parameters},
        "config": redact(to_plain(search.base)),
    }


def differences_of(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two definitions and matters, one line each."""
    found = []
    for name in ("method", "metric", "parameters"):
        before, now = saved.get(name), wanted[name]
        if before == now:
            continue
        if name != "parameters" or not isinstance(before, dict):
            found.append(f"{name}: {format_value(before)} -> {format_value(now)}")
            continue
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                found.append(f"{key}: {format_value(before.get(key))} -> {format_value(now.get(key))}")
    before, now = saved.get("config", {}), wanted["config"]
    changes = compare_configs(before, now)
    # A setting that one of them lacks came with another version of cvtrain, or with an option that is told itself.
    both = flatten(before).keys() & flatten(now).keys()
    return found + [str(change) for change in (*changes.breaking, *changes.training) if change.key in both]


def process_start(pid: int) -> str:
    """Tells a process from another that got the same id later; empty if there is none. Linux; elsewhere a guess."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "runs"
    return "runs"
