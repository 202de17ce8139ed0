"""A search with real trials, and what it leaves: the report, and a command that trains the best trial again."""

import csv
import json
import shlex

import numpy as np
import optuna
import pytest
from PIL import Image

from cvtrain.config.schema.root import register_schemas
from cvtrain.sweep import report_plots
from cvtrain.sweep.parameters import Parameter, read_parameters
from cvtrain.sweep.report import parameter_importance
from cvtrain.sweep.report_plots import (
    Column,
    Point,
    in_drawing_order,
    plot_history,
    plot_importance,
    plot_parallel,
    robust_limits,
)
from cvtrain.sweep.spec import Metric

SEARCH = """
method: random
metric: {name: val/loss, goal: minimize}
parameters:
  optimizer.lr: {distribution: log_uniform_values, min: 1e-3, max: 1e-1}
  model.hidden: {values: [[8], [16]]}
"""


def test_a_real_search_and_its_best_trial_again(cvtrain, tmp_path):
    register_schemas()
    (tmp_path / "tiny.yaml").write_text(SEARCH)
    settings = ["trainer.max_steps=20", "trainer.precision=fp32", "data.batch_size=64", "augment.preview=false"]
    answer = cvtrain("sweep", "sweep=tiny.yaml", "sweep.trials=2", *settings)
    assert answer.status == 0, answer.err + answer.out
    folder = tmp_path / "runs" / "sweeps" / "tiny"
    report = folder / "sweep_report"
    rows = list(csv.DictReader((report / "trials.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "done"]
    best = min(rows, key=lambda row: float(row["val/loss"]))
    run = folder / best["folder"]
    assert (report / "best.pt").read_bytes() == (run / "checkpoints" / "best.pt").read_bytes()
    for name in ("config.yaml", "overrides.yaml", "metrics.jsonl", "summary.json", "train.log"):
        assert (run / name).stat().st_size > 0
    assert json.loads((run / "summary.json").read_text())["monitor"] == "val/loss"
    assert (report / "report.html").read_text().count("data:image/png;base64,") == 2

    command = shlex.split((report / "best_command.txt").read_text())
    assert command[0] == "cvtrain" and "trainer.monitor=val/loss" in command
    again = cvtrain(*command[1:], "hydra.run.dir=again")
    assert again.status == 0, again.err
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["best"]["value"] == float(best["val/loss"])


@pytest.fixture(scope="module")
def parameters() -> list[Parameter]:
    listed = {
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 0.1},
        "model.hidden": {"values": [[64], [512, 512]]},
        "model.dropout": {"min": 0.0, "max": 0.6},
        "data.batch_size": {"value": 16},
    }
    return [item for item in read_parameters(listed) if isinstance(item, Parameter)]


def points(count):
    rng = np.random.default_rng(0)
    for number in range(count):
        rate, dropout = 10 ** rng.uniform(-4, -1), rng.uniform(0, 0.6)
        hidden = [[64], [512, 512]][number % 2]
        values = {"optimizer.lr": rate, "model.hidden": hidden, "model.dropout": dropout, "data.batch_size": 16}
        value = None if number == 3 else 0.95 - 0.05 * abs(np.log10(rate) + 2.5) if number else 0.1
        yield Point(number, value, number % 5 == 4, values)


def test_pictures_are_drawn(parameters, tmp_path):
    metric = Metric()
    plot_history(list(points(20)), metric, tmp_path / "history.png", title="search a")
    plot_parallel(list(points(20)), parameters, metric, tmp_path / "parallel.png", title="search a")
    plot_importance({"optimizer.lr": 0.8, "model.dropout": 0.2}, metric, tmp_path / "importance.png", title="search a")
    for name in ("history", "parallel", "importance"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 150 and len(image.convert("RGB").getcolors(1 << 20) or [0] * 9) > 8


@pytest.mark.parametrize(("other", "names"), [([1, 2], {"a", "b"}), ([1, 1], set())])
def test_importance_is_shared_out_where_two_parameters_vary(other, names):
    study = optuna.create_study()
    spread = {name: optuna.distributions.CategoricalDistribution([1, 2]) for name in ("a", "b")}
    for number in range(8):
        params = {"a": 1 + number % 2, "b": other[number // 2 % 2]}
        value = 10.0 * params["a"] + params["b"]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spread, value=value))
    found = parameter_importance(study)
    assert found.keys() == names
    if names:
        assert found["a"] == pytest.approx(100 / 101, abs=0.05)


def test_pictures_have_the_name_of_the_search(parameters, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        report_plots, "save_figure", lambda figure, path: titles.append(figure.axes[0].get_title(loc="left"))
    )
    plot_history(list(points(20)), Metric(), tmp_path / "a.png", title="search $a")
    plot_parallel(list(points(20)), parameters, Metric(), tmp_path / "b.png", title="search $a")
    plot_importance({"optimizer.lr": 0.8}, Metric(), tmp_path / "c.png", title="search $a")
    assert [title.splitlines() for title in titles] == [
        [r"search \$a", "val/accuracy of 20 trials"],
        [r"search \$a", "19 trials; the greener the better, the best is black, pruned ones are dashed"],
        [r"search \$a", "What val/accuracy depends on (fANOVA)"],
    ]


def test_every_colour_of_the_parallel_plot_is_visible_on_white():
    colors = report_plots.visible_shades()[:, :3]
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)  # WCAG 2, which asks for 3 in graphics
    assert contrast.min() >= 2.99


def test_axes_of_the_parallel_plot(parameters):
    rate = Column.of(parameters[0], [1e-4, 1e-3, 1e-2])
    assert [rate.height(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    shape = Column.of(parameters[1], [[64], [512, 512]])
    assert shape.ticks() == [(0.0, "[64]"), (1.0, "[512,512]")] and shape.height([512, 512]) == 1


def test_an_axis_says_where_it_is_cut_and_what_is_all_equal():
    cut = Column("val/accuracy", 0.8, 0.9, False, (), (True, False))
    assert [text for _, text in cut.ticks()] == ["\u2264 0.8", "0.825", "0.85", "0.875", "0.9"]
    assert cut.height(0.1) == 0
    loss = Column("val/loss", 0.5, 0.9, False, (), (False, True))
    assert loss.ticks()[-1] == (1.0, "\u2265 0.9") and loss.height(40.0) == 1
    equal = Column("val/accuracy", 0.9, 0.9, False, ())
    assert equal.ticks() == [(0.5, "0.9")] and equal.height(0.9) == 0.5


@pytest.mark.parametrize(("maximize", "order"), [(True, [1, 3, 2, 0]), (False, [2, 0, 3, 1])])
def test_the_black_line_is_the_best_that_came_to_its_end(maximize, order):
    values = [(0, 0.9, False), (1, 0.5, False), (2, 0.9, True), (3, 0.7, False), (4, None, False)]
    points = [Point(number, value, pruned, {}) for number, value, pruned in values]
    assert [point.number for point in in_drawing_order(points, Metric("x", maximize=maximize))] == order


def test_one_bad_trial_does_not_squeeze_the_axis():
    low, high = robust_limits([0.1, 0.90, 0.92, 0.94, 0.95], Metric())
    assert 0.7 < low < 0.9 and 0.95 < high < 0.97
    low, high = robust_limits([90.0, 0.5, 0.52, 0.55, 0.6], Metric("val/loss", maximize=False))
    assert 0.4 < low < 0.5 and 0.6 < high < 1.2
