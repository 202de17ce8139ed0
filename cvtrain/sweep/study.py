"""The study of a search: its trials in a database, which may be shared by many machines."""

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cvtrain.config.compose import flatten
from cvtrain.config.errors import ConfigError, RunError, format_value
from cvtrain.config.redact import redact
from cvtrain.config.resuming import compare_configs
from cvtrain.config.serialize import to_plain
from cvtrain.sweep.drawing import SURPLUS, build_sampler, draw, rank_of
from cvtrain.sweep.pruning import build_pruner
from cvtrain.sweep.search import Search
from cvtrain.sweep.trial import trial_overrides

Result = TypeVar("Result")

DATABASE = "study.db"
DEFINITION = "cvtrain"
# Attributes of a trial: who runs it and with what, when that was last said, and how it ended. Few, since each is a
# write to the database.
RUN, SEEN, END = "run", "seen", "end"
# How often a machine says that it still runs a trial, and after how long without a word others take it over.
HEARTBEAT_SECONDS = 30.0
LOST_SECONDS = 600.0
# A database that restarts is waited for, with growing pauses, before a search gives up.
RETRY_PAUSES = (0.5, 2.0, 8.0, 30.0)
DATABASE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)


@dataclass(frozen=True)
class Assignment:
    """A trial that this machine is to run. `values`: its parameters; `again`: it was begun before and goes on."""

    trial: Trial
    number: int
    values: dict[str, Any]
    again: bool


class StudyBook:
    """What a search asks of its database: the next trial, a place for values, and how trials ended.

    Args:
        search: the search.

    Raises:
        ConfigError: the database cannot be opened, or holds a study of this name over another search space.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.url = search.config.sweep.storage or f"sqlite:///{search.folder.absolute() / DATABASE}"
        self._storage = open_storage(self.url, is_own=search.config.sweep.storage is None)
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
        found = with_retries(lambda: self.study.get_trials(deepcopy=False))
        return [trial for trial in found if SURPLUS not in trial.user_attrs]

    def next_trial(self, limit: int) -> Assignment | None:
        """A trial to run: one that was cut and waits, else a new one; None if the study has its `limit` of trials.

        Machines that ask at the same moment may begin one too many; who was late sees it by its number, and gives it
        up before it runs.
        """
        self._requeue_lost()
        if len(self.trials()) >= limit and not any(trial.state is TrialState.WAITING for trial in self.trials()):
            return None
        trial = with_retries(self.study.ask)
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

        def write() -> None:
            trial.set_user_attr(END, end)
            values = value if state is TrialState.COMPLETE else None
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self.study.tell(trial, values, state=state, skip_if_finished=True)

        with_retries(write)

    def put_back(self, trial: Trial) -> None:
        """Leave a trial that was cut for the next start of the search."""
        with_retries(lambda: self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING))

    def heartbeat(self, running: list[Trial]) -> None:
        """Say now and then that this machine still runs these trials."""
        if time.monotonic() - self._last_heartbeat < HEARTBEAT_SECONDS:
            return
        self._last_heartbeat = time.monotonic()
        for trial in running:
            with contextlib.suppress(*DATABASE_ERRORS):
                trial.set_user_attr(SEEN, time.time())

    def _requeue_lost(self) -> None:
        """Put trials back whose search was killed: on this machine at once, on another after ten minutes' silence."""
        for trial in self.trials():
            if trial.state is TrialState.RUNNING and self._is_lost(trial):
                self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

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


def open_storage(url: str, *, is_own: bool) -> RDBStorage:
    """The database at a URL.

    Raises:
        ConfigError: its driver is not installed, it does not answer, or it is no database of Optuna's.
    """
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        path = Path(url.partition(":///")[2])
        if is_own:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.parent.is_dir():
            raise ConfigError("sweep.storage", url, f"there is no folder {path.parent}")
        # Searches that share the file wait for each other.
        arguments["connect_args"] = {"timeout": 60}
    elif url.startswith("postgresql"):
        arguments["connect_args"] = {"connect_timeout": 10}
    with explained_storage(url):
        storage = create_storage(url, arguments)
        if is_own:
            make_quick(storage)
        return storage


def create_storage(url: str, arguments: dict[str, Any]) -> RDBStorage:
    """The database, its tables made if they are not there; another search may be making them at the same moment."""
    for attempt in range(1, 6):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except DATABASE_ERRORS as error:
            text = str(error).lower()
            if not any(words in text for words in ("already exists", "unique", "duplicate", "locked")):
                raise
            time.sleep(0.3 * attempt)
    return RDBStorage(url, engine_kwargs=arguments)


def make_quick(storage: RDBStorage) -> None:
    """Let SQLite write ahead, so that a commit waits for no disk: 0.01 ms instead of 10 to 30.

    A loss of power then takes the last moments, but leaves a whole database. Files on a network cannot do this for
    several machines; those share a server.
    """
    import sqlalchemy

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()


@contextlib.contextmanager
def explained_storage(url: str) -> Iterator[None]:
    """Turns the errors of a database that cannot be used into a ConfigError."""
    key, shown = "sweep.storage", redact(url)
    try:
        yield
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "its driver"
        remedy = "PostgreSQL: pip install 'psycopg[binary]', and postgresql+psycopg://...; MySQL: pip install pymysql, "
        remedy += "and mysql+pymysql://..."
        raise ConfigError(key, shown, f"needs {module}, which is not installed", remedy) from error
    except DATABASE_ERRORS as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        reason = redact(str(getattr(cause, "orig", None) or cause).strip().splitlines()[0])
        remedy = "see that the database runs, and that the URL names its host, user and database"
        raise ConfigError(key, shown, f"the database cannot be used: {reason}", remedy) from error
    except RuntimeError as error:  # what Optuna raises for tables of another version
        raise ConfigError(key, shown, f"the database cannot be used: {error}") from error


def with_retries(action: Callable[[], Result]) -> Result:
    """The result of an action on the database, tried again where that does not answer.

    Raises:
        RunError: it does not answer for 40 s.
    """
    for pause in RETRY_PAUSES:
        try:
            return action()
        except DATABASE_ERRORS:
            time.sleep(pause)
    try:
        return action()
    except DATABASE_ERRORS as error:
        reason = redact(str(error).splitlines()[0])
        raise RunError(f"the database of the search does not answer any more: {reason}") from error


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
