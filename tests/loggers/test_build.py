"""build_loggers: which loggers a config opens, and what their failures do."""

import json
import logging
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from cvtrain.config.schema.logger import CsvLoggerConfig, LoggersConfig, TensorBoardConfig
from cvtrain.loggers import build as module
from cvtrain.loggers import build_loggers, read_metrics


class Mode(str, Enum):
    fast = "fast"


def test_the_files_are_always_there(tmp_path: Path) -> None:
    for index, config in enumerate((LoggersConfig(), LoggersConfig(csv=CsvLoggerConfig()))):
        logger = build_loggers(config, run_dir=tmp_path / str(index), run_config={}, name="x")
        assert logger.names == ("csv",)
        logger.log_metrics(1, 0, {"a": 0.5})
        logger.finish(0)
        assert read_metrics(tmp_path / str(index) / "metrics.jsonl") == [{"step": 1, "epoch": 1, "a": 0.5}]


def test_secrets_and_enums_are_gone_before_any_logger_sees_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Fake:
        name = "tensorboard"

        def __init__(self, **arguments: Any) -> None:
            seen.append(arguments)

        def finish(self, exit_code: int) -> None:
            """Nothing to close."""

    monkeypatch.setattr(module, "TensorBoardLogger", Fake)
    config = {"data": {"token": "hush-1", "mode": Mode.fast, "list": (1, Mode.fast)}}
    logger = build_loggers(
        LoggersConfig(tensorboard=TensorBoardConfig(flush_seconds=7)), run_dir=tmp_path, run_config=config, name="x",
        resume_step=5,
    )  # fmt: skip
    (arguments,) = seen
    assert json.dumps(arguments.pop("config")) == (
        '{"data": {"token": "<redacted>", "mode": "fast", "list": [1, "fast"]}}'
    )
    assert arguments == {"run_dir": tmp_path, "flush_seconds": 7, "resume_step": 5}
    assert config["data"]["token"] == "hush-1"
    logger.finish(0)


def test_a_logger_that_does_not_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        name = "tensorboard"

        def __init__(self, **arguments: Any) -> None:
            raise OSError("no room")

    monkeypatch.setattr(module, "TensorBoardLogger", Broken)
    with caplog.at_level(logging.WARNING):
        logger = build_loggers(
            LoggersConfig(tensorboard=TensorBoardConfig()), run_dir=tmp_path, run_config={}, name="x"
        )
    assert logger.names == ("csv",)
    assert caplog.messages == ["logger tensorboard is disabled, training continues: OSError: no room"]
    logger.finish(0)


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    first = build_loggers(LoggersConfig(), run_dir=tmp_path, run_config={}, name="x")
    for step in (1, 2):
        first.log_metrics(step, 0, {"a": 1.0})
    state = first.state()
    first.log_metrics(2, 0, {"b": 1.0})
    first.finish(1)
    second = build_loggers(LoggersConfig(), run_dir=tmp_path, run_config={}, name="x", state=state, resume_step=2)
    second.log_metrics(3, 0, {"a": 1.0})
    second.finish(0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], "b" in row) for row in rows] == [(1, False), (2, False), (3, False)]


def test_importing_the_loggers_imports_none_of_their_libraries() -> None:
    code = "import sys, cvtrain.loggers, cvtrain.report; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "wandb", "mlflow", "tensorboard", "matplotlib"} & set(loaded)
