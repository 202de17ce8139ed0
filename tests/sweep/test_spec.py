"""Sweep files: what is read, what every distribution draws, and what is refused before anything starts."""

import math
import statistics

import pytest
import yaml

from cvtrain.config.composer import conf_dir
from cvtrain.config.errors import ConfigError
from cvtrain.config.metric_names import SPLIT_METRICS
from cvtrain.config.sweep_files import find_sweep_file, split_search
from cvtrain.metrics import METRIC_NAMES
from cvtrain.sweep.parameters import Parameter, read_parameters
from cvtrain.sweep.spec import hyperband_bands, load_spec

GOOD = {
    "method": "random",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "parameters": {"optimizer.lr": {"min": 0.001, "max": 0.1}},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a sweep file, with changes to a good one; None takes a key out."""
    monkeypatch.chdir(tmp_path)

    def write_file(text=None, **changes):
        content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
        path = tmp_path / "search.yaml"
        path.write_text(text if text is not None else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write_file


def problems_of(path):
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert all(problem.origin == "in search.yaml" for problem in caught.value.problems)
    return "\n".join(str(problem) for problem in caught.value.problems)


def one(**settings) -> Parameter:
    (parameter,) = read_parameters({"x": settings})
    assert isinstance(parameter, Parameter), parameter
    return parameter


def test_shipped_files_are_good():
    files = sorted((conf_dir() / "sweep").glob("*.yaml"))
    assert files
    for file in files:
        load_spec(file)


def test_a_file_is_read(write):
    spec = load_spec(
        write(
            name="lr search",
            run_cap=7,
            parameters={
                "optimizer": {"parameters": {"lr": {"min": 0.01, "max": 0.1}, "name": {"value": "a, b"}}},
                "model": {"values": ["resnet18", None, True, [1, 2]]},
            },
            early_terminate={"type": "hyperband", "max_iter": 27, "s": 2},
        )
    )
    assert [parameter.key for parameter in spec.parameters] == ["optimizer.lr", "optimizer.name", "model"]
    assert [parameter.distribution for parameter in spec.parameters] == ["uniform", "constant", "categorical"]
    assert spec.parameters[2].choices == ("resnet18", None, True, [1, 2])
    assert (spec.name, spec.run_cap, spec.metric.maximize) == ("lr search", 7, True)
    assert spec.early_termination.bands == (3, 9)


def test_exponents_are_numbers_as_in_hydra(write):
    spec = load_spec(write("method: grid\nparameters:\n  optimizer.lr: {values: [1e-3, 1E2, 1e-05]}\n"))
    assert spec.parameters[0].choices == (1e-3, 100.0, 1e-5)
    assert spec.metric.name == "val/accuracy" and spec.metric.maximize


@pytest.mark.parametrize(
    ("settings", "distribution"),
    [
        ({"value": 3}, "constant"),
        ({"values": [1, 2]}, "categorical"),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, "categorical_w_probabilities"),
        ({"min": 1, "max": 3}, "int_uniform"),
        ({"min": 1.0, "max": 3}, "uniform"),
        ({"min": 1, "max": 9, "q": 2}, "q_uniform"),
        ({"mu": 1, "sigma": 3}, "normal"),
    ],
)
def test_distribution_where_none_is_named_is_wandbs(settings, distribution):
    assert one(**settings).distribution == distribution


@pytest.mark.parametrize(
    ("settings", "drawn", "value"),
    [
        ({"distribution": "uniform", "min": 0, "max": 1}, 0.25, 0.25),
        ({"distribution": "q_uniform", "min": 0, "max": 64, "q": 16}, 23.9, 16),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1}, 0.31, 0.3),
        ({"distribution": "normal", "mu": 2, "sigma": 3}, 0.5, 2.0),
        ({"distribution": "normal", "mu": 2, "sigma": 3}, statistics.NormalDist().cdf(1.0), 5.0),
        ({"distribution": "log_normal", "mu": 2, "sigma": 1}, 0.5, math.e**2),
        ({"distribution": "q_normal", "mu": 7.3, "sigma": 1, "q": 2}, 0.5, 8),
        ({"distribution": "beta", "a": 1, "b": 1}, 0.3, 0.3),
        ({"values": ["a", "b", "c"], "probabilities": [0.2, 0.8, 0]}, 0.19, "a"),
        ({"values": ["a", "b", "c"], "probabilities": [0.2, 0.8, 0]}, 1.0, "b"),
    ],
)
def test_what_a_drawn_number_stands_for(settings, drawn, value):
    found = one(**settings).value_of(drawn)
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("distribution", "low", "high", "ends"),
    [
        ("log_uniform", math.log(1e-4), math.log(1e-1), (1e-4, 1e-1)),
        ("log_uniform_values", 1e-4, 1e-1, (1e-4, 1e-1)),
        ("inv_log_uniform", math.log(10), math.log(1e4), (1e-4, 1e-1)),
        ("inv_log_uniform_values", 1e-4, 1e-1, (1e-4, 1e-1)),
    ],
)
def test_logarithmic_ranges(distribution, low, high, ends):
    found = one(distribution=distribution, min=low, max=high).range
    assert found.log and (found.low, found.high) == pytest.approx(ends)


def test_grids():
    assert one(min=2, max=5).grid() == [2, 3, 4, 5]
    assert one(distribution="q_uniform", min=0.0, max=0.3, q=0.1).grid() == [0.0, 0.1, 0.2, 0.3]
    assert one(min=0.0, max=1.0).grid() is None


def test_hyperbands_are_wandbs():
    # docs.wandb.ai/models/sweeps/sweep-config-keys: min_iter 3, eta 3 -> 3, 9, 27, 81
    assert hyperband_bands({"min_iter": 3}, 3)[:4] == (3, 9, 27, 81)
    # max_iter 27, s 2, eta 3 -> 9, 3
    assert hyperband_bands({"max_iter": 27, "s": 2}, 3) == (3, 9)


WRONG = [
    ({"method": "bayesian"}, "method=bayesian: must be grid, random or bayes\n  did you mean bayes?"),
    ({"method": None}, "method: must be grid, random or bayes"),
    ({"metod": "grid"}, "metod=grid: is no key of a sweep file\n  did you mean method?"),
    ({"optimizer.lr": {"value": 1}}, "parameters of the search go below parameters:"),
    ({"parameters": None}, "parameters=null: must map keys"),
    ({"parameters": {"optimizer.lr": 0.1}}, "one value is written {value: 0.1}"),
    ({"parameters": {"optimizer.lr": {"max": 0.1}}}, "does not say what values there are"),
    ({"parameters": {"optimizer.lr": {"mim": 1, "max": 0.1}}}, "did you mean min?"),
    ({"parameters": {"optimizer.lr": {"min": 1, "max": 0.1}}}, "must be below max, which is 0.1"),
    ({"parameters": {"optimizer.lr": {"min": "low", "max": 0.1}}}, "optimizer.lr.min=low: must be a number"),
    ({"parameters": {"x": {"distribution": "lognormal"}}}, "did you mean log_normal?"),
    ({"parameters": {"x": {"distribution": "uniform", "values": [1]}}}, "needs min and max"),
    ({"parameters": {"x": {"value": 1, "min": 0}}}, "x.min=0: has no effect with distribution constant"),
    ({"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "above 0 for a logarithm"),
    ({"parameters": {"x": {"distribution": "log_uniform", "min": 0, "max": 1000}}}, "log_uniform_values takes"),
    ({"parameters": {"x": {"distribution": "log_uniform", "min": 1e-5, "max": 0.1}}}, "samples from 1 to 1.105"),
    ({"parameters": {"x": {"distribution": "int_uniform", "min": 0.5, "max": 1}}}, "int_uniform needs whole numbers"),
    ({"parameters": {"x": {"values": []}}}, "at least one value"),
    ({"parameters": {"x": {"values": [1, 2, 1]}}}, "has 1 twice"),
    ({"parameters": {"x": {"values": [1, 2], "probabilities": [0.5, 0.4]}}}, "add up to 1"),
    ({"method": "grid"}, "a grid has no end over distribution uniform"),
    ({"metric": {"name": "val/acuracy", "goal": "maximize"}}, "did you mean val/accuracy?"),
    ({"metric": {"name": "accuracy", "goal": "maximize"}}, "accuracy: no run logs this metric"),
    ({"metric": {"name": "val/accuracy"}}, "W&B minimizes where none is named"),
    ({"metric": {"name": "val/loss", "goal": "maximize"}}, "would look for the worst"),
    ({"metric": {"name": "val/loss", "goal": "minimise"}}, "must be minimize or maximize"),
    ({"metric": None, "method": "bayes"}, "bayes needs one"),
    ({"run_cap": 0}, "run_cap=0: must be a whole number at least 1"),
    ({"early_terminate": {"type": "hyperband"}}, "needs either min_iter, or max_iter and s"),
    ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "max_iter and s go together"),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "eta=1: must be a number above 1"),
    ({"early_terminate": {"type": "hyperbnd"}}, "type: hyperband or median"),
    ({"early_terminate": {"type": "median", "eta": 3}}, "eta=3: is no key of type median"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_wrong_files_are_refused(write, changes, said):
    assert said in problems_of(write(**changes))


def test_files_that_are_none(write, tmp_path):
    with pytest.raises(ConfigError, match=r"search.yaml, line 2: is not valid YAML"):
        load_spec(write("method: grid\n  x: [\n"))
    with pytest.raises(ConfigError, match="found duplicate key"):
        load_spec(write("method: grid\nmethod: random\n"))
    with pytest.raises(ConfigError, match="is no sweep file"):
        load_spec(write("- a\n"))


def test_names_and_paths(write, tmp_path):
    path = write()
    assert find_sweep_file("search.yaml").resolve() == path
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    own = path.rename(tmp_path / "mine" / "sweep" / "lr.yaml")
    assert find_sweep_file("lr", str(tmp_path / "mine")) == own
    assert find_sweep_file("digits_mlp").parent == conf_dir() / "sweep"
    with pytest.raises(ConfigError, match=r"did you mean sweep=digits_mlp\?\n  searches: "):
        find_sweep_file("digit_mlp")
    with pytest.raises(ConfigError, match="no such file"):
        find_sweep_file("gone.yaml")


def test_tokens_of_the_search_and_of_its_trials():
    tokens = ["sweep=my files/a.yaml", "engine=local", "sweep.workers=2", "model=mlp", "name=sweep", "optimizer.lr=1"]
    own, trials = split_search(tokens)
    assert own == ["sweep.file='my files/a.yaml'", "engine=local", "sweep.workers=2"]
    assert trials == ["model=mlp", "name=sweep", "optimizer.lr=1"]
    assert split_search(["sweep='a b'"])[0] == ["sweep.file='a b'"]


def test_known_metrics_are_those_of_evaluation():
    assert set(SPLIT_METRICS) == set(METRIC_NAMES)
