"""The database of a study: how it is opened, and how one that goes away for a while is waited for."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.config.redact import redact
from cvtrain.sweep.study_folder import make_folder

log = logging.getLogger(__name__)

DATABASE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
# What comes and goes: a server that restarts, a network, a full disk, a lock. Anything else stays wrong.
PASSING_ERRORS = (OperationalError, InterfaceError, PoolTimeoutError)
# How long a search waits for a database that was there at its start, and how long once the user wants it to end.
LOCK_TIMEOUT_SECONDS = 300.0
STOPPING_SECONDS = 10.0
RETRY_SECONDS = 1.0
# Options of drivers against a server that is gone without a word, which else hangs a query for hours.
CONNECT_ARGUMENTS: dict[str, dict[str, int]] = {
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # milliseconds
    },
    "mysql": {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60},
}
KNOWN_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")
DRIVERS = {
    "postgresql": "pip install 'psycopg[binary]', and postgresql+psycopg://user@host/name",
    "mysql": "pip install 'pymysql[rsa]', and mysql+pymysql://user@host/name",
}


class DatabaseGoneError(RunError):
    """The database has not answered for as long as the search waits."""


class RetryPolicy:
    """Repeats what a database does not answer, until it does.

    Args:
        count_wishes: how often the user has asked for the end of the search: one more than 0 shortens the wait, two end
            it.
    """

    def __init__(self, count_wishes: Callable[[], int] = lambda: 0) -> None:
        self._count_wishes = count_wishes
        self._has_begun = False

    def begin(self) -> None:
        """From now on errors are waited for; before, each is the answer to a wrong command."""
        self._has_begun = True

    def repeat(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of an action on the database.

        Raises:
            DatabaseGoneError: it does not answer.
            RunError: it answers that the action is wrong.
        """
        failed_at: float | None = None
        while True:
            try:
                result = action(*arguments, **options)
            except DATABASE_ERRORS as error:
                if not self._has_begun:
                    raise
                if not isinstance(_database_error(error), PASSING_ERRORS):
                    raise RunError(f"the database of the search: {reason_of(error)}") from error
                if failed_at is None:
                    failed_at = time.monotonic()
                    log.warning(
                        "the database does not answer: %s\n  trials wait for it, up to %.0f s",
                        reason_of(error),
                        self._seconds(),
                    )
                self._pause(failed_at, error)
            else:
                if failed_at is not None:
                    log.info("the database answers again, after %.0f s", time.monotonic() - failed_at)
                return result

    def _seconds(self) -> float:
        wishes = self._count_wishes()
        return 0.0 if wishes > 1 else STOPPING_SECONDS if wishes else LOCK_TIMEOUT_SECONDS

    def _pause(self, failed_at: float, error: Exception) -> None:
        again = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < again:
            waited = time.monotonic() - failed_at
            if waited >= self._seconds():
                raise DatabaseGoneError(
                    f"the database of the search has not answered for {waited:.0f} s: {reason_of(error)}\n"
                    "  trials save and end; the same command goes on with the search, once the database is there"
                ) from error
            time.sleep(0.1)  # a signal does not shorten a sleep


class PatientStorage:
    """A storage of Optuna's, each of whose answers is waited for."""

    def __init__(self, storage: BaseStorage, patience: RetryPolicy) -> None:
        self.storage = storage
        self.patience = patience

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self.patience.repeat, getattr(self.storage, name))


def open_storage(url: str, patience: RetryPolicy, *, is_own: bool) -> BaseStorage:
    """The database at a URL.

    Raises:
        ConfigError: its driver is not installed, it does not answer, or it is no database of Optuna's.
    """
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    dialect, driver = dialect_of(url)
    if dialect == "sqlite":
        path = Path(url.partition(":///")[2])
        if is_own:
            make_folder(path.parent)
        elif not path.parent.is_dir():
            raise ConfigError("sweep.storage", url, f"there is no folder {path.parent}")
        # Searches that share the file wait for each other.
        arguments["connect_args"] = {"timeout": 60}
    elif driver in ("", *KNOWN_DRIVERS):
        arguments["connect_args"] = CONNECT_ARGUMENTS[dialect]
    with explained_storage(url):
        storage = create_storage(url, arguments)
        if is_own:
            make_quick(storage)
        # With Optuna's cache of finished trials.
        return cast(BaseStorage, PatientStorage(get_storage(storage), patience))


def dialect_of(url: str) -> tuple[str, str]:
    """Kind of database, and driver where the URL names one."""
    dialect, _, driver = url.partition("://")[0].partition("+")
    return "mysql" if dialect == "mariadb" else dialect, driver


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
    except ConfigError:
        raise
    except ImportError as error:
        module = getattr(error.__cause__, "name", None) or "its driver"
        remedy = DRIVERS.get(dialect_of(url)[0])
        raise ConfigError(key, shown, f"needs {module}, which is not installed", remedy or "") from error
    except DATABASE_ERRORS as error:
        remedy = "see that the database runs, and that the URL names its host, user and database"
        raise ConfigError(key, shown, f"the database cannot be used: {reason_of(error)}", remedy) from error
    except (RuntimeError, ValueError) as error:  # tables of another version; a URL that the driver cannot read
        raise ConfigError(key, shown, f"the database cannot be used: {redact(str(error))}") from error


def reason_of(error: BaseException) -> str:
    """What the driver said, in a line and without secrets."""
    database = _database_error(error)
    text = str(getattr(database, "orig", None) or database).strip()
    return redact(text.splitlines()[0] if text else type(database).__name__)


def _database_error(error: BaseException) -> BaseException:
    """The error of the database behind one of Optuna's, which tells of a failed commit only."""
    cause = error.__cause__ or error.__context__
    is_optunas = isinstance(error, optuna.exceptions.StorageInternalError)
    return cause if is_optunas and isinstance(cause, SQLAlchemyError) else error
