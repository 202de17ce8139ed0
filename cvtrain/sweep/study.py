"""The study of a search: its folder, and its trials in a database, which many machines may share."""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
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
from cvtrain.sweep.sampling import SURPLUS, build_sampler, rank_of, sample_values
from cvtrain.sweep.search import Search
from cvtrain.sweep.storage import RetryPolicy, explained_storage, open_storage
from cvtrain.sweep.trial import TRIALS, trial_folder, trial_overrides

DATABASE = "study.db"
DEFINITION = "cvtrain"
# Attributes of a trial: its owner and settings, its last heartbeat, and how it ended. Few, since each is a write.
RUN, SEEN, END = "run", "seen", "end"
# How often a machine records a heartbeat of its trials, and after how long without one another machine takes them.
HEARTBEAT_SECONDS = 30.0
LOST_SECONDS = 600.0


@dataclass(frozen=True)
class Assignment:
    """A trial for this machine to run. `values`: its parameters; `is_resumed`: it was started before."""

    trial: Trial
    number: int
    values: dict[str, Any]
    is_resumed: bool


class StudyStore:
    """The trials of a study in its database: the next one to run, values, and how each ended.

    Once the study is open, an outage of the database is waited for.

    Args:
        search: the search.
        retries: for how long.

    Raises:
        ConfigError: the folder or the database cannot be used, or has a study of this name over another search space.
    """

    def __init__(self, search: Search, retries: RetryPolicy | None = None) -> None:
        retries = retries or RetryPolicy()
        self.search = search
        is_own = search.config.sweep.storage is None
        if is_own:
            with explained_folder(search.folder):
                search.folder.mkdir(parents=True, exist_ok=True)
        self.url = search.config.sweep.storage or f"sqlite:///{search.folder.absolute() / DATABASE}"
        self._storage = open_storage(self.url, retries, is_own=is_own)
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
            self._check_folders()
            self._study_id = self._storage.get_study_id_from_name(search.name)
        retries.begin()
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}
        self._last_heartbeat = time.monotonic()

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
                f"{listed}\nmake them the same to resume it, or start another one: sweep.name=...",
            )

    def _check_folders(self) -> None:
        """Refuse to put trials into folders that another study has left."""
        folder = self.search.folder / TRIALS
        found = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
        strange = sorted(found - {trial_folder(self.search.folder, trial.number).name for trial in self.trials()})
        if strange:
            raise ConfigError(
                "sweep.name",
                self.search.name,
                f"{folder} has trials that its database does not know: {', '.join(strange[:5])}",
                "move the folder away, or start another study: sweep.name=...",
            )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials of the study by number, without surplus ones."""
        found = self.study.get_trials(deepcopy=False)
        return [trial for trial in found if SURPLUS not in trial.user_attrs]

    def next_trial(self, limit: int) -> Assignment | None:
        """Return a trial to run: an interrupted one that waits, else a new one; None if there are `limit` trials.

        Machines that ask at the same moment may create one too many; its number shows it, and it never runs.
        """
        self._requeue_lost()
        trials = self.trials()
        if len(trials) >= limit and not any(trial.state is TrialState.WAITING for trial in trials):
            return None
        trial = self.study.ask()
        frozen = next(each for each in self.study.get_trials(deepcopy=False) if each.number == trial.number)
        if rank_of(frozen, self.study) >= limit:
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        values = sample_values(trial, self.search.spec)
        overrides = trial_overrides(self.search, values)
        trial.set_user_attr(RUN, {"owner": self._owner, "values": values, "overrides": redact(overrides)})
        return Assignment(trial, trial.number, values, is_resumed=RUN in frozen.user_attrs)

    def report(self, trial: Trial, index: int, value: float) -> bool:
        """Record the value of a trial's `index`-th evaluation (from 1); return whether to prune the trial."""
        trial.report(value, index)
        return bool(trial.should_prune())

    def finish(self, trial: Trial, state: TrialState, *, value: float | None, **end: Any) -> None:
        """Record how a trial ended, with its value where it has one."""
        values = value if state is TrialState.COMPLETE else None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another machine took it over
            trial.set_user_attr(END, end)
            self.study.tell(trial, values, state=state, skip_if_finished=True)

    def requeue(self, trial: Trial | FrozenTrial) -> None:
        """Leave an interrupted trial to the next start of the search."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def heartbeat(self, running: list[Trial]) -> None:
        """Record now and then that this machine still runs these trials."""
        if time.monotonic() - self._last_heartbeat < HEARTBEAT_SECONDS:
            return
        self._last_heartbeat = time.monotonic()
        for trial in running:
            trial.set_user_attr(SEEN, time.time())

    def _requeue_lost(self) -> None:
        """Requeue trials whose search was killed: on this machine at once, on another after `LOST_SECONDS`."""
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and self._is_lost(trial):
                self.requeue(trial)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(RUN, {}).get("owner")
        if owner is not None and owner["host"] == self._owner["host"]:
            return process_start(owner["pid"]) != owner["started"]
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - trial.user_attrs.get(SEEN, begun) > LOST_SECONDS


def definition_of(search: Search) -> dict[str, Any]:
    """Return what identifies a study: its parameters, its metric, and the settings that all trials share."""
    spec = search.spec
    return {
        "method": spec.method,
        "metric": {"name": spec.metric.name, "goal": "maximize" if spec.metric.maximize else "minimize"},
        "parameters": {item.key: {"distribution": item.distribution, **item.settings} for item in spec.parameters},
        "folds": search.folds,
        "config": redact(to_plain(search.base)),
    }


def differences_of(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the differences between two definitions that change results, one line each."""
    found = []
    for name in ("method", "metric", "folds", "parameters"):
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
    # A setting that one of them lacks came with another version of cvtrain, or with an option that is listed itself.
    both = flatten(before).keys() & flatten(now).keys()
    return found + [str(change) for change in (*changes.breaking, *changes.training) if change.key in both]


def process_start(pid: int) -> str:
    """Return what tells a process from a later one of the same id; empty if there is none. A guess outside Linux."""
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
        pass
    return "runs"


@contextlib.contextmanager
def explained_folder(folder: Path) -> Iterator[None]:
    """Turn the errors of a folder that cannot be written to into a ConfigError."""
    try:
        yield
    except OSError as error:
        rule = f"nothing can be written there: {error.strerror}"
        raise ConfigError("output_root", folder, rule, "choose another folder: output_root=...") from error
