"""A bad logger is disabled with one warning; the others and the training continue."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cvtrain.loggers.base import RunLogger


class Recorder:
    """Notes its calls; raises in the method named `broken`."""

    def __init__(self, name: str, broken: str = "") -> None:
        self.name = name
        self.broken = broken
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method == self.broken:
            raise RuntimeError(f"{method} is broken")

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        self._note("log_metrics", step, epoch, dict(values))

    def log_image(self, name: str, path: Path, step: int) -> None:
        self._note("log_image", name, path, step)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._note("log_summary", dict(values))

    def log_artifact(self, path: Path) -> None:
        self._note("log_artifact", path)

    def rewind(self, state: Mapping[str, Any]) -> None:
        self._note("rewind", dict(state))

    def state(self) -> dict[str, Any]:
        self._note("state")
        return {"run_id": self.name}

    def finish(self, exit_code: int) -> None:
        self._note("finish", exit_code)


METHODS = ["rewind", "log_metrics", "log_image", "log_summary", "log_artifact", "state"]


def use(logger: RunLogger) -> None:
    """Every method twice."""
    for _ in range(2):
        logger.rewind({name: {"at": 1} for name in ("one", "two", "bad", "good")})
        logger.log_metrics(1, 0, {"a": 1.0})
        logger.log_image("plot", Path("x.png"), 1)
        logger.log_summary({"a": 1.0})
        logger.log_artifact(Path("best.pt"))
        logger.state()


def test_every_call_reaches_every_logger() -> None:
    recorders = [Recorder("one"), Recorder("two")]
    logger = RunLogger(recorders)
    use(logger)
    logger.finish(3)
    logger.finish(4)
    expected = [
        ("rewind", {"at": 1}),
        ("log_metrics", 1, 0, {"a": 1.0}),
        ("log_image", "plot", Path("x.png"), 1),
        ("log_summary", {"a": 1.0}),
        ("log_artifact", Path("best.pt")),
        ("state",),
    ]
    for recorder in recorders:
        assert recorder.calls == [*expected, *expected, ("finish", 3)]


@pytest.mark.parametrize("broken", METHODS)
def test_a_broken_logger_is_switched_off_once_by_name(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Recorder("bad", broken), Recorder("good")
    logger = RunLogger([bad, good])
    with caplog.at_level(logging.WARNING):
        use(logger)
    assert logger.names == ("good",)
    assert [record.getMessage() for record in caplog.records] == [
        f"logger bad is disabled, training continues: RuntimeError: {broken} is broken"
    ]
    assert [call[0] for call in bad.calls] == METHODS[: METHODS.index(broken) + 1]
    assert [call[0] for call in good.calls] == METHODS * 2
    assert logger.state() == {"good": {"run_id": "good"}}
    # Closed all the same.
    logger.finish(0)
    assert bad.calls[-1] == ("finish", 0)


def test_finish_returns_when_all_are_broken(caplog: pytest.LogCaptureFixture) -> None:
    bad = Recorder("bad", "finish")
    logger = RunLogger([bad])
    logger.finish(0)
    logger.log_metrics(1, 0, {"a": 1.0})
    assert bad.calls == [("finish", 0)]
    assert "logger bad is disabled" in caplog.text


def test_without_loggers_nothing_happens() -> None:
    logger = RunLogger()
    use(logger)
    logger.finish()
    assert logger.state() == {}


def test_ctrl_c_is_not_swallowed() -> None:
    class Interrupted(Recorder):
        def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunLogger([Interrupted("x")]).log_metrics(1, 0, {})
