"""The database of a study: opens it, and waits for it when it does not answer for a while."""

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

log = logging.getLogger(__name__)

DATABASE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
# Failures that pass: a server that restarts, a network, a full disk, a lock.
PASSING_ERRORS = (OperationalError, InterfaceError, PoolTimeoutError)
# How long a search waits for its database, and how long once the user has stopped it.
TIMEOUT_SECONDS = 300.0
STOPPING_SECONDS = 10.0
RETRY_SECONDS = 1.0
# Options of drivers for a server that vanishes, where a query would hang for hours.
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
    """The database has not answered for longer than the search waits."""


class RetryPolicy:
    """Repeats what a database does not answer, until it does.

    Args:
        is_stopping: True once the user has stopped the search, which shortens the wait.
    """

    def __init__(self, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._is_stopping = is_stopping
        self._has_begun = False

    def begin(self) -> None:
        """Wait from now on; before, each error is the answer to a wrong command."""
        self._has_begun = True

    def repeat(self, action: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return the result of an action on the database.

        Raises:
            DatabaseGoneError: the database does not answer.
            RunError: the database refuses the action.
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
                    log.warning("the database does not answer: %s\n  trials wait for it, up to %.0f s",
                                reason_of(error), self._timeout())  # fmt: skip
                self._pause(failed_at, error)
            else:
                if failed_at is not None:
                    log.info("the database answers again, after %.0f s", time.monotonic() - failed_at)
                return result

    def _timeout(self) -> float:
        return STOPPING_SECONDS if self._is_stopping() else TIMEOUT_SECONDS

    def _pause(self, failed_at: float, error: Exception) -> None:
        again = time.monotonic() + RETRY_SECONDS
        while time.monotonic() < again:
            waited = time.monotonic() - failed_at
            if waited >= self._timeout():
                raise DatabaseGoneError(
                    f"the database of the search has not answered for {waited:.0f} s: {reason_of(error)}\n"
                    "  trials save and end; the same command resumes the search, once the database is there"
                ) from error
            time.sleep(0.1)  # a signal does not shorten a sleep


class RetryingStorage:
    """Optuna's storage, which waits for a database that does not answer."""

    def __init__(self, storage: BaseStorage, retries: RetryPolicy) -> None:
        self.storage = storage
        self.retries = retries

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self.retries.repeat, getattr(self.storage, name))


def open_storage(url: str, retries: RetryPolicy, *, is_own: bool) -> BaseStorage:
    """Open the database at a URL.

    Args:
        url: SQLAlchemy's.
        retries: what to do when it does not answer later.
        is_own: it is the SQLite file in the study's folder.

    Raises:
        ConfigError: its driver is not installed, it does not answer, or it is no database of Optuna's.
    """
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    dialect, driver = dialect_of(url)
    if dialect == "sqlite":
        folder = Path(url.partition(":///")[2]).parent
        if not folder.is_dir():
            raise ConfigError("sweep.storage", url, f"there is no folder {folder}")
        # Searches that share the file wait for each other.
        arguments["connect_args"] = {"timeout": 60}
    elif driver in ("", *KNOWN_DRIVERS):
        arguments["connect_args"] = CONNECT_ARGUMENTS[dialect]
    with explained_storage(url):
        database = create_tables(url, arguments)
        if is_own:
            write_ahead(database)
        # With Optuna's cache of finished trials.
        return cast(BaseStorage, RetryingStorage(get_storage(database), retries))


def dialect_of(url: str) -> tuple[str, str]:
    """Return the kind of database, and the driver where the URL names one."""
    dialect, _, driver = url.partition("://")[0].partition("+")
    return "mysql" if dialect == "mariadb" else dialect, driver


def create_tables(url: str, arguments: dict[str, Any]) -> RDBStorage:
    """Open the database, with its tables; another search may be creating them at the same moment."""
    for attempt in range(1, 6):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except DATABASE_ERRORS as error:
            text = str(error).lower()
            if not any(words in text for words in ("already exists", "unique", "duplicate", "locked")):
                raise
            time.sleep(0.3 * attempt)
    return RDBStorage(url, engine_kwargs=arguments)


def write_ahead(database: RDBStorage) -> None:
    """Let SQLite write ahead, so that a commit does not wait for the disk: 0.01 ms instead of 10 to 30.

    A power failure then loses the last moments, but leaves an intact database. Several machines cannot do this with a
    file on a network; they share a server.
    """
    import sqlalchemy

    @sqlalchemy.event.listens_for(database.engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    database.engine.dispose()


@contextlib.contextmanager
def explained_storage(url: str) -> Iterator[None]:
    """Turn the errors of a database that cannot be used into a ConfigError."""
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
    """Return the driver's message in one line and without secrets."""
    database = _database_error(error)
    text = str(getattr(database, "orig", None) or database).strip()
    return redact(text.splitlines()[0] if text else type(database).__name__)


def _database_error(error: BaseException) -> BaseException:
    """Return the database's error behind Optuna's, which names a failed commit only."""
    cause = error.__cause__ or error.__context__
    is_optunas = isinstance(error, optuna.exceptions.StorageInternalError)
    return cause if is_optunas and isinstance(cause, SQLAlchemyError) else error
