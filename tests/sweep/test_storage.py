"""The database of a study: one that goes away in the middle, drivers that are not there, secrets in its URL."""

import logging
import sys
import time

import optuna
import pytest
import sqlalchemy.exc
from optuna.storages import InMemoryStorage

from cvtrain.config.errors import ConfigError, RunError
from cvtrain.sweep import storage
from cvtrain.sweep.storage import DatabaseGoneError, RetryingStorage, RetryPolicy, open_storage, reason_of

GONE = sqlalchemy.exc.OperationalError("select 1", {}, Exception("connection to me:geheim refused"))


class Failing:
    """An action that fails as often as it is told, then gives 7."""

    def __init__(self, times, error=GONE):
        self.times, self.error, self.calls = times, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return 7


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(storage, "STOPPING_SECONDS", 0.0)


def begun(is_stopping=lambda: False):
    retries = RetryPolicy(is_stopping)
    retries.begin()
    return retries


def test_a_database_that_comes_back_is_waited_for(quick, caplog):
    action = Failing(2)
    with caplog.at_level(logging.INFO):
        assert begun().repeat(action) == 7
    assert action.calls == 3
    assert [record.getMessage().partition(":")[0].partition(",")[0] for record in caplog.records] == [
        "the database does not answer",
        "the database answers again",
    ]


def test_before_the_search_has_begun_nothing_is_waited_for(quick):
    action = Failing(1)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        RetryPolicy().repeat(action)
    assert action.calls == 1


def test_a_database_that_stays_away_ends_the_search(quick, monkeypatch):
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatabaseGoneError, match="the same command resumes the search"):
        begun().repeat(Failing(10**6))
    assert 0.3 <= time.monotonic() - started < 30


def test_a_signal_shortens_the_wait(monkeypatch):
    slept = []
    monkeypatch.setattr(storage, "STOPPING_SECONDS", 0.0)
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    action = Failing(10**6)
    with pytest.raises(DatabaseGoneError):
        begun(lambda: len(slept) == 2).repeat(action)
    assert len(slept) == 2 and action.calls == 1


def test_what_stays_wrong_is_not_repeated(quick):
    action = Failing(1, sqlalchemy.exc.DataError("insert", {}, Exception("value too long")))
    with pytest.raises(RunError, match="the database of the search: value too long"):
        begun().repeat(action)
    assert action.calls == 1


def test_the_reason_is_the_drivers_own_in_one_line():
    error = sqlalchemy.exc.OperationalError("select", {}, Exception("Can't connect\n(Background on this error ...)"))
    assert reason_of(error) == "Can't connect"
    assert reason_of(sqlalchemy.exc.OperationalError("select", {}, Exception(""))) != ""


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("mysql+pymysql://me:geheim@host/db", "pymysql", "'pymysql[rsa]'"),
        ("mariadb://me:w#rt/w?rt@host/db", "MySQLdb", "'pymysql[rsa]'"),
        ("postgresql+psycopg://me:geheim@host/db", "psycopg", "'psycopg[binary]'"),
    ],
)
def test_a_missing_driver_is_named_with_what_to_install(monkeypatch, url, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        open_storage(url, RetryPolicy(), is_own=False)
    text = str(caught.value)
    assert f"needs {module}, which is not installed\n  pip install {package}" in text
    assert "<redacted>@host/db" in text and "geheim" not in text and "rt@" not in text


def test_a_study_is_stored_through_the_retries():
    stored = RetryingStorage(InMemoryStorage(), RetryPolicy())
    study = optuna.create_study(study_name="a", storage=stored, direction="maximize")
    study.tell(study.ask(), 0.5)
    assert study.best_value == 0.5 and stored.get_n_trials(stored.get_study_id_from_name("a")) == 1
