"""The parameters of a sweep file: W&B's distributions by name, and the value that a sampled number stands for."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvtrain.config.errors import Problem, format_value
from cvtrain.config.hints import closest, did_you_mean

# Of a distribution without ends, its outermost millionths are not sampled.
TAIL = 1e-6
# Quantiles at which such a distribution is checked before a search.
PROBED_TAIL = 1e-3
NORMAL = statistics.NormalDist()
# Keys of each distribution: required ones, and optional ones with their defaults.
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (("min", "max"), {}),
    "uniform": (("min", "max"), {}),
    "q_uniform": (("min", "max"), {"q": 1}),
    "log_uniform": (("min", "max"), {}),
    "log_uniform_values": (("min", "max"), {}),
    "q_log_uniform": (("min", "max"), {"q": 1}),
    "q_log_uniform_values": (("min", "max"), {"q": 1}),
    "inv_log_uniform": (("min", "max"), {}),
    "inv_log_uniform_values": (("min", "max"), {}),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}),
    "beta": (("a", "b"), {}),
    "q_beta": (("a", "b"), {"q": 1}),
}
PARAMETER_KEYS = (
    "value", "values", "min", "max", "mu", "sigma", "q", "a", "b", "probabilities", "distribution", "parameters",
)  # fmt: skip
_EXPONENTS = "min and max of log_uniform are exponents of e; log_uniform_values takes the values themselves"


@dataclass(frozen=True)
class Range:
    """The numbers that a search samples for a parameter, which `Parameter.value_of` turns into values."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Parameter:
    """One parameter of a search.

    Attributes:
        key: config group or dotted key.
        distribution: W&B's name of it.
        settings: the distribution's numbers, defaults filled in.
        choices: the values of a parameter with a list of them (one for a constant), else empty.
        range: the numbers to sample, for all others and for choices with probabilities.
    """

    key: str
    distribution: str
    settings: Mapping[str, Any]
    choices: tuple[Any, ...]
    range: Range | None

    def varies(self) -> bool:
        """False if every trial has the same value."""
        return len(self.choices) != 1

    def value_of(self, sample: float) -> Any:
        """Return the value that a number out of `range` stands for."""
        return _FROM_SAMPLE.get(self.distribution, _as_sampled)(sample, self.settings)

    def grid(self) -> list[Any] | None:
        """Return all values in order; None if there is no end of them."""
        if self.choices:
            return list(self.choices)
        low, high = self.settings.get("min", 0), self.settings.get("max", 0)
        if self.distribution == "int_uniform":
            return list(range(low, high + 1))
        if self.distribution == "q_uniform":
            step = self.settings["q"]
            first, last = round(low / step), round(high / step)
            return [_quantized(number * step, step) for number in range(first, last + 1)]
        return None

    def probes(self) -> list[Any]:
        """Return the values to check before a search: all choices, or the two ends."""
        if self.choices:
            return list(self.choices)
        assert self.range is not None
        is_endless = self.distribution.endswith("normal")
        ends = (PROBED_TAIL, 1 - PROBED_TAIL) if is_endless else (self.range.low, self.range.high)
        values = [self.value_of(end) for end in ends]
        return values if values[0] != values[1] else values[:1]


def read_parameters(listed: Any, prefix: str = "") -> Iterator[Parameter | Problem]:
    """Yield the parameters of a `parameters:` mapping, nested ones by dotted keys, and Problems for wrong ones."""
    where = f"parameters.{prefix}" if prefix else "parameters"
    if not isinstance(listed, dict) or not listed:
        yield Problem(where, listed, "must map keys to what they may be", "such as optimizer.lr: {min: 1e-4, max: 0.1}")
        return
    for name, settings in listed.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if not isinstance(settings, dict):
            remedy = f"one value is written {{value: {format_value(settings)}}}, several {{values: [...]}}"
            yield Problem(f"parameters.{key}", settings, "must be a mapping that says what values there are", remedy)
        elif "parameters" in settings:
            others = [other for other in settings if other != "parameters"]
            if others:
                yield Problem(f"parameters.{key}", rule=f"has parameters below it, and cannot have {others[0]} too")
            else:
                yield from read_parameters(settings["parameters"], key)
        else:
            yield _read_parameter(key, settings)


def _read_parameter(key: str, settings: dict[str, Any]) -> Parameter | Problem:
    where = f"parameters.{key}"
    for name in settings:
        if name not in PARAMETER_KEYS:
            remedy = did_you_mean(closest(str(name), PARAMETER_KEYS)) or "allowed: " + ", ".join(PARAMETER_KEYS)
            return Problem(f"{where}.{name}", settings[name], "is no key of a parameter", remedy)
    given = {name: value for name, value in settings.items() if name != "distribution"}
    distribution = settings.get("distribution") or _default_distribution(given)
    if distribution is None:
        remedy = "give value: one, values: [...], or min: and max:"
        return Problem(where, settings, "does not say what values there are", remedy)
    if distribution == "categorical" and "probabilities" in given:
        distribution = "categorical_w_probabilities"
    if distribution not in DISTRIBUTIONS:
        remedy = did_you_mean(closest(str(distribution), DISTRIBUTIONS)) or ", ".join(DISTRIBUTIONS)
        return Problem(f"{where}.distribution", distribution, "is no distribution", remedy)
    needed, optional = DISTRIBUTIONS[distribution]
    missing = [name for name in needed if name not in given]
    if missing:
        return Problem(where, settings, f"distribution {distribution} needs {' and '.join(missing)}")
    foreign = [name for name in given if name not in needed and name not in optional]
    if foreign:
        rule = f"has no effect with distribution {distribution}"
        return Problem(f"{where}.{foreign[0]}", given[foreign[0]], rule, "leave it out, or name another distribution")
    problem = _number_problem(where, distribution, {**optional, **given})
    return problem or _build(key, distribution, {**optional, **given})


def _default_distribution(given: Mapping[str, Any]) -> str | None:
    """Return W&B's distribution where none is named."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    if "min" in given and "max" in given:
        integers = all(isinstance(given[end], int) for end in ("min", "max"))
        return ("q_uniform" if "q" in given else "int_uniform") if integers else "uniform"
    if "mu" in given or "sigma" in given:
        return "normal"
    return None


def _number_problem(where: str, distribution: str, settings: Mapping[str, Any]) -> Problem | None:
    if "values" in settings:
        return _choices_problem(where, settings)
    for name, value in settings.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name != "value" and not is_number:
            return Problem(f"{where}.{name}", value, "must be a number")
        if name in ("sigma", "q", "a", "b") and value <= 0:
            return Problem(f"{where}.{name}", value, "must be above 0")
    if "min" not in settings:
        return None
    low, high = settings["min"], settings["max"]
    if low >= high:
        return Problem(f"{where}.min", low, f"must be below max, which is {format_value(high)}")
    if distribution == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        return Problem(where, rule="int_uniform needs whole numbers", remedy="for others: distribution: uniform")
    if distribution.endswith("log_uniform_values") and low <= 0:
        return Problem(f"{where}.min", low, "must be above 0 for a logarithm")
    if distribution.endswith("log_uniform") and max(abs(low), abs(high)) > 700:
        return Problem(where, rule=f"e^{format_value(high)} is no number", remedy=_EXPONENTS)
    if distribution == "log_uniform" and low > 0 and high <= 1:  # such as 0.0001 to 0.1, meant as values
        return Problem(where, rule=f"samples from {math.exp(low):.4g} to {math.exp(high):.4g}", remedy=_EXPONENTS)
    return None


def _choices_problem(where: str, settings: Mapping[str, Any]) -> Problem | None:
    values, shares = settings["values"], settings.get("probabilities")
    if not isinstance(values, list) or not values:
        return Problem(f"{where}.values", values, "must be a list with at least one value")
    repeated = [value for number, value in enumerate(values) if _is_in(value, values[:number])]
    if repeated:
        return Problem(f"{where}.values", values, f"has {format_value(repeated[0])} twice")
    if shares is None:
        return None
    numbers = isinstance(shares, list) and all(
        isinstance(share, (int, float)) and not isinstance(share, bool) and share >= 0 for share in shares
    )
    if not numbers or len(shares) != len(values) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        rule = f"must be {len(values)} numbers, one per value, that add up to 1"
        return Problem(f"{where}.probabilities", shares, rule)
    return None


def _is_in(value: Any, others: list[Any]) -> bool:
    return any(value == other and type(value) is type(other) for other in others)


def _build(key: str, distribution: str, settings: Mapping[str, Any]) -> Parameter:
    if distribution == "constant":
        return Parameter(key, distribution, settings, (settings["value"],), None)
    if "values" in settings:
        sampled = Range(0.0, 1.0) if "probabilities" in settings else None
        return Parameter(key, distribution, settings, tuple(settings["values"]), sampled)
    if "min" not in settings:
        return Parameter(key, distribution, settings, (), Range(TAIL, 1 - TAIL))
    low, high = settings["min"], settings["max"]
    if distribution.endswith("inv_log_uniform"):
        low, high = math.exp(-high), math.exp(-low)
    elif distribution.endswith("log_uniform"):
        low, high = math.exp(low), math.exp(high)
    is_integer = distribution == "int_uniform"
    return Parameter(key, distribution, settings, (), Range(low, high, "log" in distribution, is_integer))


def _quantized(value: float, step: float) -> float | int:
    """Return the multiple of `step` next to `value`; a whole number if the step is one."""
    return round(value / step) * step if isinstance(step, int) else float(f"{round(value / step) * step:.12g}")


def _as_sampled(sample: float, settings: Mapping[str, Any]) -> Any:
    return sample if "q" not in settings else _quantized(sample, settings["q"])


def _weighted(sample: float, settings: Mapping[str, Any]) -> Any:
    total = 0.0
    for value, share in zip(settings["values"], settings["probabilities"], strict=True):
        total += share
        if sample < total:
            return value
    return [value for value, share in zip(settings["values"], settings["probabilities"], strict=True) if share][-1]


def _normal(sample: float, settings: Mapping[str, Any]) -> Any:
    return _as_sampled(settings["mu"] + settings["sigma"] * NORMAL.inv_cdf(sample), settings)


def _log_normal(sample: float, settings: Mapping[str, Any]) -> Any:
    return _as_sampled(math.exp(settings["mu"] + settings["sigma"] * NORMAL.inv_cdf(sample)), settings)


def _beta(sample: float, settings: Mapping[str, Any]) -> Any:
    from scipy.stats import beta

    return _as_sampled(float(beta.ppf(sample, settings["a"], settings["b"])), settings)


# The value of a sampled quantile; for other distributions the sample is the value.
_FROM_SAMPLE: dict[str, Callable[[float, Mapping[str, Any]], Any]] = {
    "categorical_w_probabilities": _weighted,
    "normal": _normal,
    "q_normal": _normal,
    "log_normal": _log_normal,
    "q_log_normal": _log_normal,
    "beta": _beta,
    "q_beta": _beta,
}
