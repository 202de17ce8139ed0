"""`SweepSpec`: a W&B sweep file, read and checked by itself. `checks` compares it with the settings of runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cvtrain.config.errors import ConfigError, Problem
from cvtrain.config.hints import closest, did_you_mean
from cvtrain.config.metric_names import metric_direction, metric_problem
from cvtrain.config.provenance import readable
from cvtrain.config.yaml_scalars import misread_parameters, read_as_written
from cvtrain.sweep.parameters import Parameter, read_parameters

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
FILE_KEYS = (
    "method", "metric", "parameters", "early_terminate", "run_cap", "name", "description", "program", "command",
    "project", "entity", "controller", "scheduler", "settings", "job", "image_uri",
)  # fmt: skip
METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
TERMINATION_KEYS = {
    "hyperband": ("type", "min_iter", "max_iter", "s", "eta", "strict"),
    "median": ("type", "min_iter", "min_trials"),
}


@dataclass(frozen=True)
class Metric:
    """The metric of a search. `target`: no new trial starts once a trial is that good."""

    name: str = "val/accuracy"
    maximize: bool = True
    target: float | None = None


@dataclass(frozen=True)
class EarlyTermination:
    """`early_terminate`, counted in evaluations of a trial.

    Attributes:
        bands: for hyperband, the evaluations after which only the best 1/eta of the trials continue.
        strict: compare trials by their values at the band; else by their best so far.
        min_iter, min_trials: for median, evaluations and finished trials before a trial may be pruned.
    """

    kind: str
    bands: tuple[int, ...] = ()
    eta: float = 3.0
    strict: bool = False
    min_iter: int = 1
    min_trials: int = 5


@dataclass(frozen=True)
class SweepSpec:
    """A sweep file. `content` is all of it, for W&B."""

    path: Path
    method: str
    metric: Metric
    parameters: tuple[Parameter, ...]
    early_termination: EarlyTermination | None
    run_cap: int | None
    name: str
    content: dict[str, Any]

    def grid_size(self) -> int | None:
        """Return the number of combinations; None if a parameter has no end of values."""
        size = 1
        for parameter in self.parameters:
            values = parameter.grid()
            if values is None:
                return None
            size *= len(values)
        return size


def load_spec(path: Path) -> SweepSpec:
    """Read a sweep file.

    Raises:
        ConfigError: everything that is wrong with the file by itself.
    """
    where = f"in {readable(path)}"
    try:
        written = read_as_written(path)
        # As config files are read: 1e-3 is a number, and a key that is there twice an error.
        content: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=False)
    except OSError as error:
        raise ConfigError("sweep", path, f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        rule = f"is not valid YAML: {getattr(error, 'problem', None) or error}"
        raise ConfigError(f"{readable(path)}{line}", rule=rule) from error
    except OmegaConfBaseException as error:
        raise ConfigError("sweep", path, f"cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(written, dict):
        raise ConfigError("sweep", path, "is no sweep file: it has no keys such as method, metric and parameters")
    problems = list(_find_problems(content))
    problems += misread_parameters(content.get("parameters"), written.get("parameters"))
    read = list(read_parameters(content.get("parameters")))
    problems += [item for item in read if isinstance(item, Problem)]
    parameters = tuple(item for item in read if isinstance(item, Parameter))
    problems += _grid_problems(content.get("method"), parameters)
    if problems:
        raise ConfigError(problems=[problem.with_origin(where) for problem in problems])
    termination = content.get("early_terminate")
    return SweepSpec(
        path=path,
        method=content["method"],
        metric=_build_metric(content.get("metric")),
        parameters=parameters,
        early_termination=_build_termination(termination) if termination else None,
        run_cap=content.get("run_cap"),
        name=str(content.get("name") or path.stem),
        content=content,
    )


def _find_problems(content: dict[str, Any]) -> Iterator[Problem]:
    for key in content:
        if key not in FILE_KEYS:
            remedy = did_you_mean(closest(str(key), FILE_KEYS)) or "allowed: " + ", ".join(FILE_KEYS)
            if "." in str(key):
                remedy = "parameters of the search go below parameters:"
            yield Problem(str(key), content[key], "is no key of a sweep file", remedy)
    method = content.get("method")
    if method not in METHODS:
        remedy = did_you_mean(closest(str(method), METHODS))
        rule = "must be grid, random or bayes"
        yield Problem("method", method, rule, remedy) if "method" in content else Problem("method", rule=rule)
    yield from _metric_problems(content.get("metric"), method)
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or isinstance(run_cap, bool) or run_cap < 1):
        yield Problem("run_cap", run_cap, "must be a whole number at least 1")
    if content.get("early_terminate") is not None:
        yield from _termination_problems(content["early_terminate"])


def _metric_problems(metric: Any, method: Any) -> Iterator[Problem]:
    if metric is None:
        if method == "bayes":
            yield Problem("metric", rule="bayes needs one", remedy="metric: {name: val/accuracy, goal: maximize}")
        return
    if not isinstance(metric, dict) or "name" not in metric:
        yield Problem("metric", metric, "must be a mapping", "metric: {name: val/accuracy, goal: maximize}")
        return
    for key in metric:
        if key not in METRIC_KEYS:
            remedy = did_you_mean(closest(str(key), METRIC_KEYS)) or "allowed: " + ", ".join(METRIC_KEYS)
            yield Problem(f"metric.{key}", metric[key], "is no key of a metric", remedy)
    name, goal = metric["name"], metric.get("goal", "minimize")
    problem = metric_problem("metric.name", name)
    if problem is not None:
        yield problem
    if goal not in GOALS:
        yield Problem("metric.goal", goal, "must be minimize or maximize")
    elif (better := metric_direction(name)) and not goal.startswith(better.value):
        default = "" if "goal" in metric else ", and W&B minimizes where none is named"
        rule = f"would look for the worst: {name} is better at its {better.value}{default}"
        yield Problem("metric.goal", goal, rule, f"goal: {better.value}imize")
    target = metric.get("target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, (int, float))):
        yield Problem("metric.target", target, "must be a number")


def _termination_problems(settings: Any) -> Iterator[Problem]:
    kind = settings.get("type") if isinstance(settings, dict) else None
    if kind not in TERMINATION_KEYS:
        remedy = "early_terminate: {type: hyperband, min_iter: 3}"
        yield Problem("early_terminate", settings, "must be a mapping with type: hyperband or median", remedy)
        return
    for key, value in settings.items():
        if key not in TERMINATION_KEYS[kind]:
            remedy = did_you_mean(closest(str(key), TERMINATION_KEYS[kind])) or ", ".join(TERMINATION_KEYS[kind])
            yield Problem(f"early_terminate.{key}", value, f"is no key of type {kind}", remedy)
        elif key in ("min_iter", "max_iter", "s", "min_trials") and not _is_count(value):
            yield Problem(f"early_terminate.{key}", value, "must be a whole number at least 1")
        elif key == "eta" and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 1):
            yield Problem("early_terminate.eta", value, "must be a number above 1")
        elif key == "strict" and not isinstance(value, bool):
            yield Problem("early_terminate.strict", value, "must be true or false")
    if kind == "hyperband" and ("min_iter" in settings) == ("max_iter" in settings):
        rule = "needs either min_iter, or max_iter and s"
        yield Problem("early_terminate", rule=rule, remedy="min_iter: evaluations before a trial may be ended")
    elif kind == "hyperband" and ("max_iter" in settings) != ("s" in settings):
        yield Problem("early_terminate", rule="max_iter and s go together", remedy="s: how many bands")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _grid_problems(method: Any, parameters: tuple[Parameter, ...]) -> list[Problem]:
    if method != "grid":
        return []
    remedy = "give values: [...], or take method: random or bayes"
    return [
        Problem(
            f"parameters.{item.key}", rule=f"a grid has no end over distribution {item.distribution}", remedy=remedy
        )
        for item in parameters
        if item.grid() is None
    ]


def _build_metric(metric: dict[str, Any] | None) -> Metric:
    if metric is None:
        return Metric()
    return Metric(metric["name"], metric.get("goal", "minimize") == "maximize", metric.get("target"))


def _build_termination(settings: dict[str, Any]) -> EarlyTermination:
    if settings["type"] == "median":
        return EarlyTermination("median", (), 3.0, False, settings.get("min_iter", 1), settings.get("min_trials", 5))
    eta = float(settings.get("eta", 3))
    return EarlyTermination("hyperband", hyperband_bands(settings, eta), eta, settings.get("strict", False))


def hyperband_bands(settings: dict[str, Any], eta: float) -> tuple[int, ...]:
    """Return W&B's brackets in evaluations: min_iter * eta^n for n = 0, 1, ..., or max_iter / eta^n for n = 1 to s."""
    if "min_iter" in settings:
        bands = [float(settings["min_iter"])]
        while bands[-1] < 1e6:
            bands.append(bands[-1] * eta)
        return tuple(sorted({int(band) for band in bands}))
    bands = [settings["max_iter"] / eta ** (power + 1) for power in range(settings["s"])]
    return tuple(sorted({int(band) for band in bands if band >= 1}))
