"""MLflow tracking (extra `mlflow`): a server, a database or a local folder."""

import importlib.util
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvtrain.config.errors import ConfigError
from cvtrain.config.serialize import flatten
from cvtrain.loggers.base import Logger

log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "cvtrain"
DEFAULT_FOLDER = "mlruns"
# The longest value that every MLflow store takes for a parameter, and how many go into one request.
_MAX_PARAM_CHARS = 500
_PARAMS_PER_REQUEST = 100
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")


class MLflowLogger(Logger):
    """A run of MLflow's tracking service, through its client, so that no global run of the user's is touched.

    After a rewind MLflow keeps every point of a step, and shows the last.

    Args:
        config: nested plain values, without secrets; kept as parameters with dotted names, cut at 500 characters.
        name: name of the run.
        experiment: None: MLFLOW_EXPERIMENT_NAME, else cvtrain.
        tracking_uri: None: MLFLOW_TRACKING_URI, else the folder `mlruns` where the command runs.
        log_images: send pictures.
        log_checkpoint: send checkpoints as artifacts.
        run_id: id of the run to resume, from `state()`.

    Raises:
        ConfigError: the extra, or a database's driver, is not installed.
    """

    name = "mlflow"

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        name: str,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        log_images: bool = True,
        log_checkpoint: bool = False,
        run_id: str | None = None,
    ) -> None:
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigError(
                "logger", "mlflow", "mlflow is not installed", "uv sync --extra mlflow, or pip install mlflow-skinny"
            )
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or Path(DEFAULT_FOLDER).resolve().as_uri()
        _check_driver(uri)
        _set_environment(uri)
        # Two to four seconds, so only for runs that use it.
        from mlflow.tracking import MlflowClient

        self._log_images = log_images
        self._log_checkpoint = log_checkpoint
        self._client = MlflowClient(tracking_uri=uri)
        if run_id is None:
            wanted = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
            run_id = self._client.create_run(self._experiment_id(wanted), run_name=name).info.run_id
            self._log_config(run_id, config)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id: str = run_id
        log.info("MLflow run %s at %s", run_id, uri)

    def log_metrics(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = {**values, "epoch": epoch + 1}
        metrics = [Metric(name, float(value), now, step) for name, value in points.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def log_image(self, name: str, path: Path, step: int) -> None:
        if self._log_images:
            self._client.log_artifact(self._run_id, str(path), artifact_path=f"images/{name}/step_{step}")

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._client.log_dict(self._run_id, flatten(values), "summary.json")

    def log_artifact(self, path: Path) -> None:
        if self._log_checkpoint:
            self._client.log_artifact(self._run_id, str(path), artifact_path="checkpoints")

    def state(self) -> dict[str, Any]:
        return {"run_id": self._run_id}

    def finish(self, exit_code: int) -> None:
        self._client.set_terminated(self._run_id, status="FINISHED" if exit_code == 0 else "FAILED")

    def _experiment_id(self, experiment: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        return found.experiment_id if found else self._client.create_experiment(experiment)

    def _log_config(self, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:_MAX_PARAM_CHARS]) for name, value in flatten(config).items()]
        for start in range(0, len(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])


def _check_driver(uri: str) -> None:
    if uri.startswith(_DATABASES) and importlib.util.find_spec("sqlalchemy") is None:
        raise ConfigError(
            "logger.mlflow.tracking_uri",
            uri,
            "a database needs the whole of mlflow, and only mlflow-skinny is installed",
            "pip install mlflow, or give a folder or a server's http:// address",
        )


def _set_environment(uri: str) -> None:
    """Bounds for MLflow's own patience, which is 120 s times 7 tries; what the user has set stays."""
    defaults = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        # Usage statistics to MLflow's makers are the user's to allow.
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "://" not in uri or uri.startswith("file:"):
        # MLflow 3 refuses folders otherwise.
        defaults["MLFLOW_ALLOW_FILE_STORE"] = "true"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
