"""MLflow's real client on a local folder, and on a server that is not there."""

import importlib.util
import math
import os
import socket
import time
from pathlib import Path

import pytest

from cvtrain.config.errors import ConfigError
from cvtrain.config.schema.logger import LoggersConfig, MLflowConfig
from cvtrain.loggers import build_loggers
from cvtrain.loggers.mlflow import MLflowLogger

VARIABLES = (
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ALLOW_FILE_STORE",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Set first, so that what the logger sets is taken back as well.
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_a_run_on_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    (tmp_path / "plot.png").write_bytes(b"png")
    (tmp_path / "best.pt").write_bytes(b"weights")
    config = {"optimizer": {"lr": 0.1}, "data": {"kwargs": {"token": "hush-hush"}, "long": "x" * 900}}
    logger = build_loggers(
        LoggersConfig(mlflow=MLflowConfig(log_checkpoint=True)),
        run_dir=tmp_path / "run",
        run_config=config,
        name="folder",
    )
    assert logger.names == ("csv", "mlflow")
    logger.log_metrics(10, 0, {"train/loss": 0.5, "bad": math.nan})
    logger.log_metrics(20, 1, {"train/loss": 0.25})
    logger.log_image("val/confusion", tmp_path / "plot.png", 20)
    logger.log_summary({"best": {"val/accuracy": 0.75}})
    logger.log_artifact(tmp_path / "best.pt")
    run_id = logger.state()["mlflow"]["run_id"]
    logger.finish(1)

    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("cvtrain")
    assert experiment is not None
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.info.experiment_id) == (
        "folder",
        "FAILED",
        experiment.experiment_id,
    )
    assert run.data.params == {"optimizer.lr": "0.1", "data.kwargs.token": "<redacted>", "data.long": "x" * 500}
    points = [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]
    assert points == [(10, 0.5), (20, 0.25)]
    assert [(point.step, point.value) for point in client.get_metric_history(run_id, "epoch")] == [(10, 1.0), (20, 2.0)]
    artifacts = tmp_path / "mlruns" / experiment.experiment_id / run_id / "artifacts"
    files = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert files == {"images/val/confusion/step_20/plot.png", "checkpoints/best.pt", "summary.json"}

    again = MLflowLogger(config=config, name="other", run_id=run_id)
    again.log_metrics(30, 2, {"train/loss": 0.125})
    again.finish(0)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [10, 20, 30]


def test_a_server_that_is_not_there_switches_it_off_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    # The user's own patience is kept.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    logger = build_loggers(
        LoggersConfig(mlflow=MLflowConfig(tracking_uri=uri)), run_dir=tmp_path / "run", run_config={}, name="x"
    )
    assert time.monotonic() - began < 15
    assert logger.names == ("csv",)
    assert "logger mlflow is disabled, training continues" in caplog.text
    assert (os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == ("0", "10")
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    logger.finish(0)


def hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == hidden else find_spec(name, *more)
    )


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "mlflow")
    with pytest.raises(ConfigError) as caught:
        build_loggers(LoggersConfig(mlflow=MLflowConfig()), run_dir=tmp_path / "run", run_config={}, name="x")
    assert "uv sync --extra mlflow, or pip install mlflow-skinny" in str(caught.value)


def test_a_database_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    hide(monkeypatch, "sqlalchemy")
    with pytest.raises(ConfigError, match=r"logger\.mlflow\.tracking_uri=sqlite:///runs\.db: a database needs"):
        MLflowLogger(config={}, name="x", tracking_uri="sqlite:///runs.db")
